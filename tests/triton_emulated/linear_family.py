# SPDX-License-Identifier: Apache-2.0
"""What tests of the Triton linear family share: error bounds, one row or many, tiles, machine code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from emulation import INTERPRETED, same_bits
from torch import Tensor

from pyspec.kernels.aot import AotCase, compile_case
from pyspec.kernels.dots import Config

needs_compiler = pytest.mark.skipif(INTERPRETED, reason="interpreted functions cannot be compiled")
HALVES = (
    2.0**-16
)  # of |x| |weight|: what two bf16 halves of x, of the weight or of both leave out, at most 3 * 2^-18


def check_error(got: Tensor, x: Tensor, weight: Tensor, halves: bool, extra: Tensor | None = None) -> None:
    """Against float64: every f32 addition may round by 2^-24 of the sum of |terms|, halves by HALVES."""
    exact, terms = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    if extra is not None:
        exact, terms = exact + extra, terms + extra.abs()
    bound = terms * (x.size(1) * 2.0**-24 + (HALVES if halves else 0)) + 1e-37
    assert got.dtype == torch.float32
    assert got.shape == exact.shape
    assert ((got.double() - exact).abs() <= bound).all()


def check_rows_alone(call: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """The first and the last row have the bits that they have alone."""
    together = call(x)
    for m in (0, x.size(0) - 1):
        same_bits(together[m : m + 1], call(x[m : m + 1]))


def same_order(c: Config) -> Iterator[Config]:
    """Launches that sum in the order of c: other tiles of rows, parts in one program or in many."""
    yield replace(c, block_m=16, split=False)
    yield replace(c, block_m=64, split=c.parts > 1)


def check_order_follows_from_weight(pick: Callable[[int], Config]) -> None:
    """What fixes the order of sums is the same for one row and for many."""
    orders = {(c.block_n, c.block_k, c.part_k, c.parts) for c in map(pick, (1, 2, 16, 17, 64, 100, 4096))}
    assert len(orders) == 1
    assert pick(1).block_m == 16
    assert pick(4096).block_m > 16


def check_instructions(cases: list[AotCase], name: str, **least: int) -> None:
    """One case's machine code has so many instructions of a kind: hmma on sm_80, tcgen05 on sm_100."""
    case = next(case for case in cases if case.name == name)
    for kind, count in least.items():
        found = compile_case(case, 100 if kind == "tcgen05" else 80 if kind == "hmma" else 90)
        assert found.instructions[kind] >= count, f"{kind}: {found}"
        assert found.spills == 0, f"{kind}: {found}"
