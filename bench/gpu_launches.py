# SPDX-License-Identifier: Apache-2.0
"""With how many threads and how much dynamic shared memory CUDA kernels are launched: noted by tests/cuda_emulator, which runs nothing.

Launches choose both by pure functions of sizes and the GPU's limits, so that usual sizes on the emulator give what a GPU would be asked for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pyspec.contract import OPS, Case
from pyspec.spec.commit_kv import cases as commit_kv_cases
from pyspec.spec.tree_attention import make_case

from .gpu_compile import short_name
from .harness import GateError
from .occupancy import TARGETS

# Besides the specification's cases, sizes of models for the ops whose launch depends on them, rows and channels that take every tile of the
# linear family, and odd sizes for the kernels of what is not aligned.
ROWS = (1, 64)
CHANNELS = (576, 4096, 16384)


@dataclass(frozen=True)
class Launch:
    """The launch of a kernel that asks for most shared memory, and the call that made it."""

    threads: int
    shared_bytes: int  # dynamic
    case: str


Launches = dict[str, dict[str, Launch]]  # target, `source: kernel`


def record() -> Launches:
    """The launch of every kernel for every target; GateError where the emulator cannot run."""
    emulator = import_emulator()
    found: Launches = {target: {} for target in TARGETS}
    for target, kernels in found.items():
        for op, case in cases():
            if emulator.missing(op):
                continue
            with emulator.schedule(device=target.removesuffix("a")), emulator.recording() as launches:
                emulator.call(op, *case.args, **case.kwargs)
            for launch in launches:
                label = f"{launch.source}: {short_name(launch.kernel)}"
                known = kernels.get(label)
                if known is None or launch.shared_bytes > known.shared_bytes:
                    kernels[label] = Launch(launch.threads, launch.shared_bytes, f"{op} {case.name}")
    return found


def import_emulator() -> Any:
    """tests/cuda_emulator of the source tree; an installed package has none."""
    tests = Path(__file__).parent.parent / "tests"
    if not (tests / "cuda_emulator").is_dir():
        raise GateError("bench: the CUDA emulator is in the source tree's tests, which are not here")
    if str(tests) not in sys.path:
        sys.path.insert(0, str(tests))
    if reason := importlib.import_module("cuda_emulator.build").why_not():
        raise GateError(f"bench: {reason}")
    return importlib.import_module("cuda_emulator.emulator")


def cases() -> Iterator[tuple[str, Case]]:
    """Calls that reach every CUDA kernel."""
    for name, spec in OPS.items():
        if spec.cases is not None:
            limit = spec.limits.get("cuda", lambda *args, **kwargs: None)
            for case in spec.cases():
                if limit(spec.bind(case.args), *case.args, **case.kwargs) is None:
                    yield name, case
    for M in ROWS:
        for N in CHANNELS:
            yield from _linear(M, N)
    for D in (64, 96, 128, 256):
        for pages in ("bf16", "f16"):
            for n in (1, 64):
                chain = list(range(-1, n - 1))
                name = f"D{D}-{pages}-nodes{n}"
                yield "tree_attention", make_case(name, 32, 8, D, 16, pages, pages, [(1024, chain)])
    i8 = next(case for case in commit_kv_cases() if case.args[0].dtype == torch.int8)
    for D in (11, 12):  # an odd number of bytes, a multiple of 4
        cut = [x[..., :D].contiguous() for x in i8.args[:2]]
        yield "commit_kv", Case(f"D{D}-i8", (*cut, *i8.args[2:]), i8.kwargs)
    yield "quantize_activations", Case("K64-unaligned", (torch.zeros(2, 65)[:, 1:],))
    yield "verify_tree", _long_chain(300)
    for K in (4096, 16384):
        x, weight = torch.zeros(2, K), torch.ones(K)
        yield "rms_norm", Case(f"K{K}", (x, weight), {"eps": 1e-5})
        yield "rms_norm_quantize", Case(f"K{K}", (x, weight), {"eps": 1e-5})


def _linear(M: int, N: int) -> Iterator[tuple[str, Case]]:
    """Every format at one size; K does not change a launch."""
    K, name = 256, f"M{M}-N{N}"
    bytes_ = torch.zeros(N, K, dtype=torch.uint8)
    scales, g_idx = torch.ones(N, K // 128, dtype=torch.float16), torch.zeros(K, dtype=torch.int32)
    for x in (torch.zeros(M, K), torch.zeros(M, K, dtype=torch.bfloat16)):
        yield "linear", Case(name, (x, torch.zeros(N, K, dtype=torch.bfloat16)))
        f8 = x, bytes_.view(torch.float8_e4m3fn), torch.ones(N, 1)
        yield "fp8_linear", Case(name, f8, {"granularity": "channel"})
        for groups in (None, g_idx):
            i4 = x, bytes_[:, : K // 2].contiguous(), scales, None, groups
            yield "w4a16_linear", Case(name, i4, {"group_size": 128})
    i8 = torch.zeros(M, K, dtype=torch.int8), bytes_.view(torch.int8), torch.ones(M), torch.ones(N)
    yield "w8a8_linear", Case(name, i8, {"out_dtype": torch.float32})


def _long_chain(n: int) -> Case:
    """verify_tree for one request of more nodes than are given a block each."""
    one = lambda value, dtype=torch.float32: torch.tensor([value], dtype=dtype)
    i32 = torch.int32
    tree = torch.zeros(n, dtype=i32), torch.arange(-1, n - 1, dtype=i32), torch.tensor([0, n], dtype=i32)
    law = one(1.0), one(0, i32), one(1.0), one(0.0), one(1.0), one(0, torch.int64), one(0, i32)
    return Case(f"T{n}", (torch.zeros(n, 8), *tree, one(0, i32), *law), {"max_path": n})


def as_json(launches: Launches) -> dict[str, dict[str, dict[str, Any]]]:
    """`source: kernel` to target to fields, as gpu_budgets.json has them."""
    labels = sorted({label for kernels in launches.values() for label in kernels})
    return {
        label: {target: asdict(kernels[label]) for target, kernels in launches.items() if label in kernels}
        for label in labels
    }
