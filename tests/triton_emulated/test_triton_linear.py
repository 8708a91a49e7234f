# SPDX-License-Identifier: Apache-2.0
"""linear in Triton: error of split halves, one row or many, tiles, views, machine code, planted bugs."""

from __future__ import annotations

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
from pyspec.kernels import linear as kernels

both = pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16], ids=str)


def problem(m: int, n: int, k: int, x_dtype: torch.dtype, weight_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(m + n + k)
    return torch.randn(m, k, generator=g).to(x_dtype), torch.randn(n, k, generator=g).to(weight_dtype)


@pytest.mark.parametrize("case", supported("linear"))
def test_error(case: Case) -> None:
    x, weight, bias = case.args
    extra = None if bias is None else bias.double()
    check_error(kernels.linear(*case.args), x, weight, True, extra)
    narrow = x.bfloat16()
    check_error(kernels.linear(narrow, weight, bias), narrow, weight, weight.dtype == torch.float32, extra)


@both
def test_one_row_or_many(weight_dtype: torch.dtype) -> None:
    x, weight = problem(43, 20, 290, torch.float32, weight_dtype)
    check_rows_alone(lambda rows: kernels.linear(rows, weight, None), x)


@both
def test_tiles_and_parts_change_no_bit(weight_dtype: torch.dtype) -> None:
    x, weight = problem(20, 20, 300, torch.float32, weight_dtype)
    bias = torch.randn(20, generator=torch.Generator().manual_seed(0))
    c = kernels.pick_config(20, 20, 300, x.dtype, weight.dtype)
    assert c.parts == 2
    assert c.split
    want = kernels.linear(x, weight, bias)
    for other in same_order(c):
        same_bits(kernels._launch(x, weight, bias, other), want)


def test_order_follows_from_the_weight() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for n, k in ((576, 576), (49152, 576), (4096, 4096), (8, 70)):
            check_order_follows_from_weight(lambda m, n=n, k=k, d=dtype: kernels.pick_config(m, n, k, d, d))
    assert kernels.pick_config(1, 576, 576, torch.float32, torch.bfloat16).parts == 3
    assert kernels.pick_config(1, 49152, 576, torch.float32, torch.bfloat16).parts == 1


def test_views() -> None:
    g = torch.Generator().manual_seed(3)
    x, weight, bias = (
        torch.randn(5, 90, generator=g),
        torch.randn(40, 24, generator=g),
        torch.randn(48, generator=g),
    )
    views = x[:, 3:43], weight.t(), bias[::2]
    same_bits(
        kernels.linear(*views),
        kernels.linear(*(view.clone(memory_format=torch.contiguous_format) for view in views)),
    )
    same_bits(
        kernels.linear(x[::2, 5:45], weight.t()[:, :40], None),
        kernels.linear(x[:, 5:45], weight.t(), None)[::2],
    )


def test_bad_row_poisons_itself_alone() -> None:
    x, weight = problem(4, 20, 48, torch.float32, torch.bfloat16)
    want = kernels.linear(x, weight)
    x[1, 7], x[2, 40] = torch.nan, torch.inf
    got = kernels.linear(x, weight)
    assert got[1:3].isnan().all()
    same_bits(got[::3], want[::3])


@needs_compiler
def test_machine_code() -> None:
    """One row and a chunk of a prompt use the same kind of instruction on each machine."""
    cases = kernels.aot_cases()
    check_instructions(cases, "linear-fp32-bf16-M1-N576-K576", hmma=8, wgmma=4, tcgen05=4)
    check_instructions(cases, "linear-bf16-bf16-M512-N4096-K4096", hmma=8, wgmma=4, tcgen05=4)


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("no mask", "oob_read"), ("one part", "race")])
def test_planted_bugs_are_found(bug: str, kind: str) -> None:
    x, weight = problem(3, 20, 300, torch.float32, torch.bfloat16)
    with faults(kind):
        kernels._launch(x, weight, None, kernels.pick_config(3, 20, 300, x.dtype, weight.dtype), bug)


def test_a_dropped_low_half_is_found() -> None:
    x, weight = problem(9, 20, 64, torch.float32, torch.bfloat16)
    got = kernels._launch(x, weight, None, kernels.pick_config(9, 20, 64, x.dtype, weight.dtype), "high half")
    with pytest.raises(AssertionError):
        check_error(got, x, weight, True)
