# SPDX-License-Identifier: Apache-2.0
"""w4a16_linear in Triton: error, one row or many, tiles and parts, views, machine code, planted bugs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from emulation import faults, needs_ttsem, same_bits, supported
from linear_family import (
    check_error,
    check_instructions,
    check_order_follows_from_weight,
    check_rows_alone,
    needs_compiler,
    same_order,
)
from torch import Tensor

from pyspec.contract import Case
from pyspec.kernels import w4a16_linear as kernels
from pyspec.spec.w4a16_linear import dequantize

KINDS = ("symmetric", "zeros", "act-order")


def problem(kind: str, n: int, k: int, group_size: int) -> tuple[Tensor | None, ...]:
    """qweight, scales, zeros (no integers) and g_idx."""
    g = torch.Generator().manual_seed(n + k)
    j = 1 if group_size == -1 else k // group_size
    qweight = torch.randint(0, 256, (n, k // 2), generator=g, dtype=torch.uint8)
    scales = torch.rand(n, j, generator=g) * 0.02
    zeros = torch.rand(n, j, generator=g) * 15 if kind != "symmetric" else None
    g_idx = torch.randint(0, j, (k,), generator=g, dtype=torch.int32) if kind == "act-order" else None
    return qweight, scales, zeros, g_idx


def dense(qweight: Any, scales: Any, zeros: Any, g_idx: Any, group_size: int) -> Tensor:
    """The weight in float64."""
    return dequantize(qweight, scales.double(), None if zeros is None else zeros.double(), g_idx, group_size)


@pytest.mark.parametrize("case", [p for p in supported("w4a16_linear") if "bfloat16" not in p.id])
def test_error(case: Case) -> None:
    x, *weight = case.args
    check_error(kernels.w4a16_linear(*case.args, **case.kwargs), x, dense(*weight, **case.kwargs), True)


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_of_any_value_and_bf16_rows(kind: str) -> None:
    weight = problem(kind, 20, 128, 32)
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    got = kernels.w4a16_linear(x, *weight, group_size=32)
    check_error(got, x, dense(*weight, group_size=32), kind != "symmetric")


@pytest.mark.parametrize(
    ("kind", "group_size"), [("symmetric", 128), ("zeros", 32), ("act-order", 64), ("zeros", -1)]
)
def test_rows_tiles_and_parts_change_no_bit(kind: str, group_size: int) -> None:
    n, k = 20, 256
    weight = problem(kind, n, k, group_size)
    x = torch.randn(20, k, generator=torch.Generator().manual_seed(1))
    call = lambda rows: kernels.w4a16_linear(rows, *weight, group_size=group_size)
    check_rows_alone(call, x)
    c = kernels.pick_config(20, n, k, group_size, weight[3] is not None)
    assert c.parts == 2
    for other in same_order(c):
        same_bits(kernels._launch(x, *weight, group_size, other), call(x))


def test_order_follows_from_the_weight() -> None:
    for group_size, act_order in ((128, False), (32, True), (-1, False)):
        pick = lambda m, g=group_size, a=act_order: kernels.pick_config(m, 576, 1536, g, a)
        check_order_follows_from_weight(pick)
        assert pick(1).part_k % max(1, group_size) == 0


def test_views() -> None:
    qweight, scales, zeros, _ = problem("zeros", 40, 128, 32)
    x = torch.randn(128, 3, generator=torch.Generator().manual_seed(2)).t()
    odd = [qweight[::2], scales.t().contiguous().t()[::2], zeros[::2]]
    got = kernels.w4a16_linear(x, *odd, group_size=32)
    same_bits(got, kernels.w4a16_linear(x.contiguous(), *(t.contiguous() for t in odd), group_size=32))
    same_bits(got, kernels.w4a16_linear(x, qweight, scales, zeros, group_size=32)[:, ::2])


@needs_compiler
def test_machine_code() -> None:
    cases = kernels.aot_cases()
    check_instructions(cases, "w4a16_linear-symmetric-g128-M1-N4096-K4096", hmma=8, wgmma=4, tcgen05=4)
    check_instructions(cases, "w4a16_linear-symmetric-g128-M512-N4096-K4096", wgmma=4)


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("no mask", "oob_read"), ("one part", "race")])
def test_planted_bugs_are_found(bug: str, kind: str) -> None:
    """K fills no step of 64 in the first."""
    k = 38 if bug == "no mask" else 256
    weight = problem("symmetric", 20, k, -1)
    with faults(kind):
        kernels._launch(torch.randn(3, k), *weight, -1, kernels.pick_config(3, 20, k, -1, False), bug)


@pytest.mark.parametrize("bug", ["zero 7", "first scale"])
def test_planted_wrong_values_are_found(bug: str) -> None:
    weight, x = problem("symmetric", 20, 128, 32), torch.randn(3, 128)
    got = kernels._launch(x, *weight, 32, kernels.pick_config(3, 20, 128, 32, False), bug)
    with pytest.raises(AssertionError):
        check_error(got, x, dense(*weight, group_size=32), True)
