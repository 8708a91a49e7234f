# SPDX-License-Identifier: Apache-2.0
"""What CUDA kernels move and compute, counted while tests/cuda_emulator runs them on the CPU: no GPU, no time.

`traffic_over_minimum`: bytes of all sectors of 32 bytes that are touched, each once (what DRAM moves at least),
over the op's cost; `l2_over_minimum`: with a sector read once per block (what L2 gives if L1 keeps what a block has
read); `requested_over_minimum`: once per warp instruction (if L1 keeps nothing). All without `workspace`, what the
kernels keep for themselves between launches, over the cost too. `bank_conflicts`: wavefronts of shared memory that
conflicts added, in percent of all. `useful_mma_share`: rows, columns and steps of k of tensor-core products that are
not all zeros, hence no padding. The machine has one multiprocessor, which the row tiles of tree_attention fill: a larger
one takes more and smaller of them, whose KV L2 gives again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyspec.contract import OPS, Case
from pyspec.spec.tree_attention import make_case

from .gpu_launches import import_emulator
from .harness import GateError, Options, Row, make_row

SECTOR = 32  # bytes
CONTEXT = 8192
NODES = (1, 4, 16, 64)
HEADS_PER_KV_HEAD = (3, 4, 8)
PAGE_SIZES = (16, 64)
ROWS = (1, 4, 16, 64)
SIZES = (2048, 4096, 11008, 14336)
GROUP_SIZE = 128
WORKSPACE = "workspace"  # the emulator's name of what is neither argument nor output


def rows(options: Options) -> Iterator[Row]:
    """Ratios per kernel and case; GateError if a result is wrong or the emulator cannot run."""
    emulator = import_emulator()
    for op, case in _cases(options.quick):
        with emulator.counting() as counters, emulator.schedule(time_limit=3600.0, num_sms=1):
            result = emulator.call(op, *case.args, **case.kwargs)
        _check(op, case, result)
        yield from _ratios(op, case, counters)


def _cases(quick: bool) -> Iterator[tuple[str, Case]]:
    context, nodes, sizes = (512, NODES[:3:2], SIZES[:1]) if quick else (CONTEXT, NODES, SIZES)
    for R in HEADS_PER_KV_HEAD[::2] if quick else HEADS_PER_KV_HEAD:
        for S in PAGE_SIZES[:1] if quick else PAGE_SIZES:
            for n in nodes:
                parents = [(i + 1) // 2 - 1 for i in range(n)]  # a binary tree
                name = f"context{context}-nodes{n}-R{R}-page{S}"
                yield (
                    "tree_attention",
                    make_case(name, 2 * R, 2, 128, S, "bf16", "bf16", [(context, parents)]),
                )
    for N in sizes:
        for K in sizes:
            for M in ROWS[::2] if quick else ROWS:
                yield "w4a16_linear", _quantised_case(M, N, K)


def _quantised_case(M: int, N: int, K: int) -> Case:
    g = torch.Generator().manual_seed(M)
    qweight = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, generator=g)
    scales = (0.5 + torch.rand(N, K // GROUP_SIZE, generator=g)).half() / K
    x = torch.randn(M, K, generator=g).bfloat16()
    return Case(f"M{M}-N{N}-K{K}", (x, qweight, scales, None, None), {"group_size": GROUP_SIZE})


def _check(op: str, case: Case, result: Any) -> None:
    """Against the specification; of a linear layer the first 64 channels, independent of the others."""
    args, got = list(case.args), result
    if op == "w4a16_linear":
        args[1:3] = args[1][:64], args[2][:64]
        got = result[:, :64]
    want = OPS[op].reference(*args, **case.kwargs)
    for one, other in zip(_tensors(got), _tensors(want), strict=True):
        limit = 2**-7 * other.float().abs().max()  # bf16 rounds an output by 2^-9
        if not (one.float() - other.float()).abs().max() <= limit:
            raise GateError(f"gpu_traffic: {op} {case.name} differs from its specification")


def _tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def _ratios(op: str, case: Case, counters: Any) -> Iterator[Row]:
    spec = OPS[op]
    assert spec.cost is not None
    minimum = spec.cost(spec.bind(case.args), *case.args, **case.kwargs).bytes
    moved = {name: traffic for name, traffic in counters.traffic.items() if name != WORKSPACE}.values()
    written = sum(traffic.written_sectors for traffic in moved)
    unique = sum(traffic.read_sectors_unique + traffic.written_sectors_unique for traffic in moved)
    per_block = written + sum(traffic.read_sectors_per_block for traffic in moved)
    requested = written + sum(traffic.read_sectors for traffic in moved)
    own = counters.traffic.get(WORKSPACE)
    kept = own.read_sectors_per_block + own.written_sectors if own else 0
    figures = {
        "traffic_over_minimum": unique,
        "l2_over_minimum": per_block,
        "requested_over_minimum": requested,
        "workspace": kept,
    }
    for metric, sectors in figures.items():
        yield make_row(op, case.name, "cuda-emulated", metric, SECTOR * sectors / minimum, "x")
    wavefronts = sum(line.wavefronts for line in counters.shared.values())
    conflicts = 100 * counters.bank_conflicts / wavefronts if wavefronts else 0.0
    yield make_row(op, case.name, "cuda-emulated", "bank_conflicts", conflicts, "%")
    yield make_row(op, case.name, "cuda-emulated", "useful_mma_share", counters.useful_mma_share, "")
