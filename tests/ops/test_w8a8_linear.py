# SPDX-License-Identifier: Apache-2.0
"""w8a8_linear: bit for bit the specification, extremes included."""

from __future__ import annotations

import pytest
import torch
from contract_tests import error_of, needs_native

from pyspec import ops, spec
from pyspec.contract import Case


@needs_native
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in spec.w8a8_linear.cases()])
def test_equals_the_specification(case: Case) -> None:
    got = torch.ops.pyspec.w8a8_linear(*case.args, **case.kwargs)
    want = spec.w8a8_linear.run(*case.args, **case.kwargs)
    assert got.dtype == want.dtype
    assert torch.equal(got, want)


@pytest.mark.parametrize("values", [(-128, -128), (-128, 127), (127, -128), (127, 127)])
def test_extremes_do_not_saturate(values: tuple[int, int]) -> None:
    k = 4097
    x, weight = (torch.full((rows, k), v, dtype=torch.int8) for rows, v in zip((2, 5), values, strict=True))
    got = ops.w8a8_linear(x, weight, torch.ones(2), torch.ones(5))
    assert torch.equal(got, torch.full((2, 5), float(values[0] * values[1] * k)))


def test_refuses() -> None:
    ones = torch.ones(1)
    for k, dtype, want in (
        (8, torch.int32, (TypeError, "w8a8_linear: out_dtype must be f32|bf16|f16, got i32")),
        (
            1 << 17,
            torch.float32,
            (ValueError, "w8a8_linear: x must be [M, K] with K < 131072, got [1, 131072]"),
        ),
    ):
        x = torch.zeros(1, k, dtype=torch.int8)
        assert error_of(lambda x=x, d=dtype: spec.w8a8_linear.run(x, x, ones, ones, out_dtype=d)) == want
        assert error_of(lambda x=x, d=dtype: ops.w8a8_linear(x, x, ones, ones, out_dtype=d)) == want
