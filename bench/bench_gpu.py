# SPDX-License-Identifier: Apache-2.0
"""Every GPU kernel on a GPU: first that it is right, clean under compute-sanitizer and capturable, then how fast, beside its peers.

    correct     every shared case against the specification: integers bit for bit, floats with at most twice the error of
                rounding the result to bf16
    sanitizer   memcheck, racecheck, initcheck and synccheck on those cases, where compute-sanitizer is installed
    graph       a replay of the captured call gives the call's bits
    time        median of cold calls [p20, p80], GB/s, TFLOP/s, percentage of the nearer measured peak, ratio to each peer
Exit code 3 without a GPU.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pyspec import backends
from pyspec.contract import OPS, Case, Cost
from pyspec.spec.quant_formats import FORMATS
from pyspec.spec.tree_attention import make_case

from .gpu_device import captured, measure, peaks, require_gpu
from .gpu_peers import installed, peers
from .harness import GateError, Options, Row, Timing, make_row

BACKENDS = ("cuda", "triton")
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
BF16_ROUNDING = 2.0**-9  # the largest relative error of rounding to bf16


def rows(options: Options) -> Iterator[Row]:
    """Rows of every timed case and backend; NoGpu without one, GateError if a kernel is wrong or not clean."""
    require_gpu("bench gpu")
    print(
        "peers: " + ", ".join(f"{name} {version}" for name, version in installed().items()), file=sys.stderr
    )
    check_all()
    yield from sanitize()
    for op, case in timed_cases(options.quick):
        yield from time_case(op, case)


def check_all() -> int:
    """Every shared case of every op on every backend that can run it; how many were compared."""
    compared = 0
    for op in sorted(OPS):
        cases = OPS[op].cases
        for case in cases() if cases else ():
            for backend in backends_of(op, moved(case, "cuda")):
                check(op, case, backend)
                compared += 1
    return compared


def moved(case: Case, device: str) -> Case:
    """The case with copies of its tensors on a device."""
    args = (a.to(device, copy=True) if isinstance(a, Tensor) else a for a in case.args)
    return Case(case.name, tuple(args), case.kwargs)


def backends_of(op: str, case: Case) -> list[str]:
    """The GPU backends that can run a call."""
    options = backends.explain(op, *case.args, **case.kwargs).options
    return [option.backend for option in options if option.backend in BACKENDS and not option.reason]


def check(op: str, case: Case, backend: str, device: str = "cuda") -> None:
    """Results and tensors written in place against the specification on the host; GateError names what differs."""
    host, there = moved(case, "cpu"), moved(case, device)
    want = _results(op, host, OPS[op].reference(*backends.complete(op, host.args), **host.kwargs))
    got = _results(
        op, there, backends.kernel(op, backend)(*backends.complete(op, there.args), **there.kwargs)
    )
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        if reason := difference(a.cpu(), b):
            raise GateError(
                f"gpu: {op} {case.name} on {backend}: result {i} must be the specification's, {reason}"
            )


def difference(got: Tensor, want: Tensor) -> str:
    """In what two results differ, beyond what rounding explains; empty if they agree."""
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"got {list(got.shape)} {got.dtype}, not {list(want.shape)} {want.dtype}"
    if not want.is_floating_point() or want.element_size() == 1:
        wrong = got.view(torch.uint8) != want.view(torch.uint8) if want.element_size() == 1 else got != want
        return f"{int(wrong.sum())} of {want.numel()} elements differ" if wrong.any() else ""
    a, b = got.double(), want.double()
    finite = b.isfinite()
    if (
        not torch.equal(a[~finite].nan_to_num(7.0), b[~finite].nan_to_num(7.0))
        or not a[finite].isfinite().all()
    ):
        return "NaN or infinity in other places"
    if not finite.any():
        return ""
    error, allowed = float((a - b)[finite].abs().max()), 2 * BF16_ROUNDING * float(b[finite].abs().max())
    return f"the error {error:.3g} is over {allowed:.3g}" if error > allowed else ""


def sanitize() -> Iterator[Row]:
    """Run the checks once under each tool of compute-sanitizer."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("sanitizer: compute-sanitizer is not installed", file=sys.stderr)
        return
    for name in SANITIZERS:
        command = [tool, "--tool", name, "--error-exitcode", "9", sys.executable, "-c", "from bench.bench_gpu import check_all; print(check_all())"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise GateError(f"gpu: {name} must find nothing, got\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
        yield make_row("gpu", "every case", "all", name, 0, "findings")


def time_case(op: str, case: Case) -> Iterator[Row]:
    """Own backends and peers in turns."""
    spec_ = OPS[op]
    args = backends.complete(op, case.args)
    assert spec_.cost is not None
    host = tuple(a.cpu() if isinstance(a, Tensor) else a for a in args)
    cost = spec_.cost(spec_.bind(host), *host, **case.kwargs)
    own = {name: partial(backends.kernel(op, name), *args, **case.kwargs) for name in backends_of(op, case)}
    for name, call in own.items():
        check_capture(op, case, name, call)
    others, left_out = peers(op, case)
    for name, reason in left_out.items():
        print(f"peer {name} for {op} {case.name}: {reason}", file=sys.stderr)
    times = measure({**own, **others})
    for name in own:
        yield from timing_rows(op, case.name, name, times[name], cost, {p: times[p] for p in others})


def timing_rows(
    op: str, case: str, backend: str, time: Timing, cost: Cost, others: dict[str, Timing]
) -> Iterator[Row]:
    """The figures of one timing: percentiles, bandwidth, throughput and one ratio per peer (under 1: we are faster)."""
    label = f"{op} {case}"
    percent = peaks().percent(cost.bytes, cost.flops, time.p50)
    yield make_row("gpu", label, backend, "p20", time.p20 * 1e6, "us")
    yield make_row("gpu", label, backend, "time", time.p50 * 1e6, "us", peak_pct=percent)
    yield make_row("gpu", label, backend, "p80", time.p80 * 1e6, "us")
    yield make_row("gpu", label, backend, "bandwidth", cost.bytes / time.p50 / 1e9, "GB/s")
    yield make_row("gpu", label, backend, "throughput", cost.flops / time.p50 / 1e12, "TFLOP/s")
    for peer, other in others.items():
        ratio = time.p50 / other.p50
        yield make_row("gpu", label, backend, "peer", other.p50 * 1e6, "us", peer=peer, ratio=ratio)


def check_capture(op: str, case: Case, backend: str, call: Any) -> None:
    """A replayed graph gives the bits of the call. Ops that write in place are left to the engine's own use of graphs."""
    if any(term.mutated for term in OPS[op].inputs):
        return
    want = [result.clone() for result in _flat(call())]
    graph, results = captured(call)
    for result in _flat(results):
        result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    if not all(
        torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(_flat(results), want, strict=True)
    ):
        raise GateError(
            f"gpu: {op} {case.name} on {backend}: a replayed graph must give the call's bits, got others"
        )


def timed_cases(quick: bool, device: str = "cuda") -> Iterator[tuple[str, Case]]:
    """Sizes of an 8B model: decode, a tree and a prefill chunk; attention over short and long contexts."""
    g = torch.Generator(device).manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, device=device, generator=g)
    n, k = 4096, 4096
    for m in (1, 16) if quick else (1, 4, 16, 64, 512):
        x = normal(m, k)
        yield "rms_norm", Case(f"M{m}-K{k}", (x, normal(k)), {"eps": 1e-5})
        yield "silu_mul", Case(f"M{m}-N{2 * 14336}", (normal(m, 2 * 14336),))
        yield "linear", Case(f"bf16-M{m}-N{n}-K{k}", (x.bfloat16(), normal(n, k).bfloat16(), None))
        for format in ("q4_0", "q8_0") if quick else FORMATS:
            block = FORMATS[format]
            # Bytes at random would be scales at random, NaN among them; zeros take the same time.
            row = torch.zeros(n, k // block.block_k * block.block_bytes, dtype=torch.uint8, device=device)
            yield "quant_linear", Case(f"{format}-M{m}-N{n}-K{k}", (x, row, None), {"format": format})
        nibbles = torch.randint(0, 256, (n, k // 2), device=device, generator=g, dtype=torch.uint8)
        scales = normal(n, k // 128).half()
        yield (
            "w4a16_linear",
            Case(f"g128-M{m}-N{n}-K{k}", (x.bfloat16(), nibbles, scales), {"group_size": 128}),
        )
        bytes_ = torch.randint(-127, 128, (m + n, k), device=device, generator=g, dtype=torch.int8)
        w8a8 = (bytes_[:m], bytes_[m:], normal(m).abs(), normal(n).abs())
        yield "w8a8_linear", Case(f"M{m}-N{n}-K{k}", w8a8, {"out_dtype": torch.float32})
        fp8 = (x.bfloat16(), normal(n, k).to(torch.float8_e4m3fn), normal(n, 1).abs())
        yield "fp8_linear", Case(f"channel-M{m}-N{n}-K{k}", fp8, {"granularity": "channel"})
    chain, star = (
        lambda count: list(range(-1, count - 1)),
        lambda count: [-1, *[i // 2 for i in range(count - 1)]],
    )
    for context in (512,) if quick else (512, 4096, 32768):
        for name, parents, batch in (
            ("decode", chain(1), 1),
            ("decode", chain(1), 32),
            ("tree", star(32), 1),
            ("tree", star(16), 8),
        ):
            case = make_case(
                f"{name}-L{context}-n{len(parents)}-B{batch}",
                32,
                8,
                128,
                16,
                "bf16",
                "bf16",
                [(context, parents)] * batch,
            )
            yield "tree_attention", moved(case, device)
    yield (
        "tree_attention",
        moved(make_case("prefill-L0-n512-B1", 32, 8, 128, 16, "bf16", "bf16", [(0, chain(512))]), device),
    )
    rows_, vocab = 16, 128256
    law = [torch.full((rows_,), value, device=device) for value in (0.8, 50, 0.95, 0.0, 1.0, 1, 0)]
    types = (torch.float32, torch.int32, *[torch.float32] * 3, torch.int64, torch.int32)
    positions = torch.arange(rows_, device=device, dtype=torch.int32)
    args = (
        normal(rows_, vocab),
        positions,
        *(value.to(dtype) for value, dtype in zip(law, types, strict=True)),
    )
    yield "sample", Case(f"T{rows_}-V{vocab}", args)


def _flat(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results or ())


def _results(op: str, case: Case, results: Any) -> list[Tensor]:
    """What a call returned, and what it has written in place."""
    terms = zip(OPS[op].inputs, case.args, strict=False)
    return [*_flat(results), *(arg for term, arg in terms if term.mutated and isinstance(arg, Tensor))]
