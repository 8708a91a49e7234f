# SPDX-License-Identifier: Apache-2.0
"""fp8_linear in Triton: every e4m3 code, error, one row or many, tiles, machine code, planted bugs."""

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
from pyspec.kernels import fp8_linear as kernels
from pyspec.spec.fp8_linear import dequantize, scale_shape

granularities = pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])


def problem(n: int, k: int, granularity: str) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n + k)
    scale = torch.rand(scale_shape(n, k, granularity), generator=g) * 0.1
    return torch.randn(n, k, generator=g).to(torch.float8_e4m3fn), scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", supported("fp8_linear"))
def test_error(case: Case, dtype: torch.dtype) -> None:
    x, weight, scale = case.args
    got = kernels.fp8_linear(x.to(dtype), weight, scale, **case.kwargs)
    check_error(
        got, x.to(dtype), dequantize(weight, scale, case.kwargs["granularity"]), dtype == torch.float32
    )


def test_every_code_is_exact() -> None:
    """Zeros, denormals, both signs; the two NaN codes make their channels NaN and no others."""
    codes = torch.arange(256, dtype=torch.uint8)
    weight = torch.zeros(256, 64, dtype=torch.float8_e4m3fn)
    weight.view(torch.uint8)[:, 5] = codes
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    x[0, 5] = 1
    got = kernels.fp8_linear(x, weight, torch.ones(1, 1), granularity="tensor")[0]
    want = codes.view(torch.float8_e4m3fn).float()
    assert got.isnan().nonzero().flatten().tolist() == [0x7F, 0xFF]
    same_bits(got.nan_to_num() + 0.0, want.nan_to_num() + 0.0)


@granularities
def test_rows_tiles_and_parts_change_no_bit(granularity: str) -> None:
    n, k = 20, 270
    weight, scale = problem(n, k, granularity)
    x = torch.randn(20, k, generator=torch.Generator().manual_seed(1))
    call = lambda rows: kernels.fp8_linear(rows, weight, scale, granularity=granularity)
    check_rows_alone(call, x)
    c = kernels.pick_config(20, n, k, x.dtype)
    assert c.parts == 2
    for other in same_order(c):
        same_bits(kernels._launch(x, weight, scale, granularity, other), call(x))


def test_order_follows_from_the_weight() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_order_follows_from_weight(lambda m, d=dtype: kernels.pick_config(m, 576, 1536, d))
    assert kernels.pick_config(1, 576, 1536, torch.float32).part_k % 128 == 0


def test_views() -> None:
    weight, scale = problem(40, 90, "channel")
    x = torch.randn(3, 90, generator=torch.Generator().manual_seed(2))
    odd = x[:, 3:80], weight[::2, 3:80], scale[::2]
    same_bits(kernels.fp8_linear(*odd), kernels.fp8_linear(*(t.contiguous() for t in odd)))


@needs_compiler
def test_machine_code() -> None:
    cases = kernels.aot_cases()
    check_instructions(cases, "fp8_linear-fp32-block-M1-N4096-K4096", hmma=4, wgmma=4)
    check_instructions(cases, "fp8_linear-bf16-channel-M512-N4096-K4096", wgmma=4, tcgen05=4)


@needs_ttsem
@pytest.mark.parametrize(("bug", "kind"), [("no mask", "oob_read"), ("one part", "race")])
def test_planted_bugs_are_found(bug: str, kind: str) -> None:
    weight, scale = problem(20, 270, "channel")
    with faults(kind):
        kernels._launch(
            torch.randn(3, 270), weight, scale, "channel", kernels.pick_config(3, 20, 270, torch.float32), bug
        )


@pytest.mark.parametrize("bug", ["no sign", "first scale"])
def test_planted_wrong_values_are_found(bug: str) -> None:
    (weight, scale), x = problem(20, 256, "block"), torch.randn(3, 256)
    got = kernels._launch(x, weight, scale, "block", kernels.pick_config(3, 20, 256, x.dtype), bug)
    with pytest.raises(AssertionError):
        check_error(got, x, dequantize(weight, scale, "block"), True)
