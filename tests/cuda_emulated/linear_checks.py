# SPDX-License-Identifier: Apache-2.0
"""What the tests of the CUDA linear family ask alike: errors against float64, rows alone, every schedule, traffic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from cuda_emulator import emulator
from cuda_emulator.counters import Counters
from emulated_calls import emulated, how_caught, same, shifted
from torch import Tensor

from pyspec.contract import Case

UNIT = 2.0**-24  # half a unit in the last place of f32, relative


def output(op: str, case: Case, **options: Any) -> Tensor:
    return emulated(op, case, **options)[0]


def relative_error(out: Tensor, x: Tensor, dense: Tensor) -> float:
    """The largest error against x times the transpose of a float64 weight, in units of the sum of absolute products."""
    if not out.numel() or not x.size(1):
        return out.double().abs().max().item() if out.numel() else 0.0
    want, size = x.double() @ dense.T, x.double().abs() @ dense.abs().T
    return ((out.double() - want).abs() / size.clamp_min(1e-30)).max().item()


def error_bound(x: Tensor, *, split_weight: bool = False) -> float:
    """Of bf16 hi + lo (2^-17 of each factor that is split), and of f32 sums: K / 16 MMAs, 8 warps, scales and zero points."""
    split = (2.0**-17 if x.dtype == torch.float32 else 0.0) + (2.0**-16 if split_weight else 0.0)
    return split + (x.size(1) / 16 + 16) * UNIT


def first_rows(case: Case, m: int, start: int = 0) -> Case:
    """The case with rows [start, start + m) of x alone."""
    x, *others = case.args
    return replace(case, args=(x[start : start + m], *others))


def rows_are_independent(op: str, case: Case) -> bool:
    """Rows alone, and in batches that take other tiles, have the bits of the whole."""
    whole = output(op, case)
    rows = whole.size(0)
    alone = all(same(output(op, first_rows(case, 1, m)), whole[m : m + 1]) for m in {0, 1, 8, rows - 1})
    return alone and all(
        same(output(op, first_rows(case, m)), whole[:m]) for m in (2, 8, 9, 17, 64) if m < rows
    )


def is_the_same_in_every_schedule(op: str, case: Case) -> bool:
    """All orders of threads and of copies, under the checker."""
    want = output(op, case)
    for order in emulator.ORDERS:
        for landing in emulator.COPIES:
            with emulator.schedule(order=order, copies=landing, seed=3):
                if not same(output(op, case, checked=True), want):
                    return False
    return True


def is_the_same_unaligned(op: str, case: Case) -> bool:
    """Rows of x and of the weight at odd addresses: copied or read byte by byte, the same bits."""
    x, weight, *others = case.args
    moved = replace(case, args=(shifted(x), shifted(weight), *others))
    return same(output(op, moved, checked=True), output(op, case))


def caught_by(op: str, case: Case, bug: int) -> set[str]:
    with emulator.schedule(copies="late"):
        return how_caught(op, [case], bug)


def counted(op: str, case: Case) -> Counters:
    with emulator.counting() as counters:
        output(op, case)
    return counters
