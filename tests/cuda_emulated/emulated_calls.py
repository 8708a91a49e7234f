# SPDX-License-Identifier: Apache-2.0
"""What the tests of emulated kernels ask alike: calls on copies, every order of threads, views, planted bugs.

The emulator fills what a binding allocates with 0xff (NaN, or -1): an output that a kernel leaves unwritten is no result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from contract_tests import copies
from cuda_emulator import emulator
from torch import Tensor

from pyspec.contract import OPS, Case


def tensors_of(value: Any) -> list[Tensor]:
    parts = [] if value is None else [value] if isinstance(value, Tensor) else list(value)
    return [part for part in parts if isinstance(part, Tensor)]


def written(op: str, args: list[Any], result: Any) -> list[Tensor]:
    """The results of a call, then what it wrote in place."""
    terms = zip(OPS[op].inputs, args, strict=False)  # optional ones may be left out at the end
    return tensors_of(result) + [arg for term, arg in terms if term.mutated and isinstance(arg, Tensor)]


def by_specification(op: str, case: Case) -> list[Tensor]:
    args = copies(case)
    return written(op, args, OPS[op].run(*args, **case.kwargs))


def emulated(op: str, case: Case, **options: Any) -> list[Tensor]:
    """Results of the CUDA kernel on copies of the case's arguments; `options`: checked, bug."""
    args = copies(case)
    return written(op, args, emulator.call(op, *args, **case.kwargs, **options))


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit; NaN equals NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    nan = a.isnan() if a.is_floating_point() else torch.zeros_like(a, dtype=torch.bool)
    return torch.equal(nan, b.isnan() if b.is_floating_point() else nan) and torch.equal(
        bits(a)[~nan], bits(b)[~nan]
    )


def bits(x: Tensor) -> Tensor:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(integers[x.itemsize])


def all_same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def is_the_same_in_every_order(op: str, case: Case) -> bool:
    """All thread orders under the checker. None of these kernels copies asynchronously: there is nothing to delay."""
    want = emulated(op, case)
    for order in emulator.ORDERS:
        with emulator.schedule(order=order, seed=5):
            if not all_same(emulated(op, case, checked=True), want):
                return False
    return True


def is_the_same_strided(op: str, case: Case) -> bool:
    """Every tensor as a view into a larger one, last dimension not contiguous, at an odd offset."""

    def view(t: Tensor) -> Tensor:
        wide = torch.empty([*t.shape[:-1], t.shape[-1] * 2 + 3], dtype=t.dtype)
        return wide[..., 1 : 1 + 2 * t.shape[-1] : 2].copy_(t)

    args = [view(arg) if isinstance(arg, Tensor) else arg for arg in copies(case)]
    return all_same(written(op, args, emulator.call(op, *args, **case.kwargs)), emulated(op, case))


def shifted(x: Tensor, elements: int = 1) -> Tensor:
    """The tensor with rows further apart by `elements`, its first one at as odd an offset: no access of 16 bytes fits."""
    wide = torch.empty([*x.shape[:-1], x.shape[-1] + elements], dtype=x.dtype)
    return wide[..., elements:].copy_(x)


def how_caught(
    op: str, cases: Iterable[Case], bug: int, equal: Callable[[list[Tensor], list[Tensor]], bool] = all_same
) -> set[str]:
    """What tells a planted bug: kinds of findings of the checker, or "result" where the result differs."""
    found: set[str] = set()
    for case in cases:
        want = emulated(op, case)
        try:
            got = emulated(op, case, bug=bug, checked=True)
        except emulator.EmulatorError as error:
            found |= error.kinds
        else:
            found |= set() if equal(got, want) else {"result"}
    return found
