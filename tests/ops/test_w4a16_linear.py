# SPDX-License-Identifier: Apache-2.0
"""w4a16_linear: equal to linear with the dequantised weight, act-order, bad values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract_tests import error_of, needs_native

from pyspec import ops, spec
from pyspec.contract import Case
from pyspec.spec.w4a16_linear import dequantize

w4a16_linear = torch.ops.pyspec.w4a16_linear


@needs_native
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in spec.w4a16_linear.cases()])
def test_equals_linear_with_the_dequantised_weight(case: Case) -> None:
    x, *weight = case.args
    dense = dequantize(*weight, case.kwargs["group_size"])
    got = w4a16_linear(*case.args, **case.kwargs)
    assert torch.equal(got, ops.linear(x, dense))
    assert torch.allclose(got, spec.w4a16_linear.run(*case.args, **case.kwargs), rtol=1e-5, atol=1e-5)


def test_dequantised_values() -> None:
    """By hand: q = 3 and 12 of one byte, groups swapped by g_idx."""
    qweight = torch.full((1, 32), 3 | 12 << 4, dtype=torch.uint8)
    scales, zeros = torch.tensor([[0.5, 2.0]]), torch.tensor([[1.0, 7.0]])
    g_idx = torch.tensor([1] * 32 + [0] * 32, dtype=torch.int32)
    assert dequantize(qweight, scales, zeros, None, 32)[0, [0, 1, 32, 33]].tolist() == [1.0, 5.5, -8.0, 10.0]
    assert dequantize(qweight, scales, zeros, g_idx, 32)[0, [0, 1, 32, 33]].tolist() == [-8.0, 10.0, 1.0, 5.5]
    assert dequantize(qweight, scales[:, :1], None, None, -1)[0, :2].tolist() == [-2.5, 2.0]


@needs_native
def test_rows_do_not_depend_on_the_batch() -> None:
    g = torch.Generator().manual_seed(3)
    x, qweight = (
        torch.randn(64, 256, generator=g),
        torch.randint(0, 256, (40, 128), generator=g, dtype=torch.uint8),
    )
    scales = torch.rand(40, 4, generator=g).half()
    whole = w4a16_linear(x, qweight, scales, None, None, group_size=64)
    for m in range(64):
        assert torch.equal(
            w4a16_linear(x[m : m + 1], qweight, scales, None, None, group_size=64)[0], whole[m]
        )


def refused() -> list[Any]:
    x, qweight, scales = torch.zeros(2, 64), torch.zeros(3, 32, dtype=torch.uint8), torch.zeros(3, 2)
    return [
        ([x, qweight, scales, None, None], 16, "group_size must be 32|64|128|-1, got 16"),
        ([x, qweight, scales, None, None], 128, "x must be [M, K] with K a multiple of 128, got [2, 64]"),
        ([x, qweight, scales, None, None], 64, "scales must be [N, J] with J=1 (K / group_size), got [3, 2]"),
        (
            [x, qweight, scales, None, torch.full((64,), 2, dtype=torch.int32)],
            32,
            "g_idx must be in [0, 2), got 2",
        ),
    ]


@pytest.mark.parametrize(("args", "group_size", "want"), refused())
def test_refuses(args: list[Any], group_size: int, want: str) -> None:
    error = (ValueError, f"w4a16_linear: {want}")
    assert error_of(lambda: spec.w4a16_linear.run(*args, group_size=group_size)) == error
    assert error_of(lambda: w4a16_linear(*args, group_size=group_size)) == error
