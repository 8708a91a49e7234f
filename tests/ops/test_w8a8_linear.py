# SPDX-License-Identifier: Apache-2.0
"""w8a8_linear, w8a8_linear_packed and pack_int8_weight: bit for bit the specification, extremes included; the layout."""

from __future__ import annotations

import pytest
import torch
from contract_tests import error_of, needs_native
from torch import Tensor

from pyspec import ops, spec
from pyspec.contract import Case

packed_cases = [pytest.param(c, id=c.name) for c in spec.w8a8_linear_packed.cases()]


@needs_native
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in spec.w8a8_linear.cases()])
def test_equals_the_specification(case: Case) -> None:
    got = torch.ops.pyspec.w8a8_linear(*case.args, **case.kwargs)
    want = spec.w8a8_linear.run(*case.args, **case.kwargs)
    assert got.dtype == want.dtype
    assert torch.equal(got, want)


@needs_native
@pytest.mark.parametrize("case", packed_cases)
def test_packed_equals_the_specification(case: Case) -> None:
    got = torch.ops.pyspec.w8a8_linear_packed(*case.args, **case.kwargs)
    assert torch.equal(got, spec.w8a8_linear_packed.run(*case.args, **case.kwargs))


def product(m: int, n: int, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(m + n + k)
    x, weight = (torch.randint(-128, 128, (rows, k), generator=g).to(torch.int8) for rows in (m, n))
    return x, weight, torch.rand(m, generator=g), torch.rand(n, generator=g)


@needs_native
@pytest.mark.parametrize("n", [5, 16, 33, 48, 200])
@pytest.mark.parametrize("k", [1, 63, 64, 65, 300])
def test_every_tile_of_rows(n: int, k: int) -> None:
    """All counts of rows that tiles can leave over, by rows and packed; each row alone gives the same bits."""
    x, weight, x_scale, w_scale = product(70, n, k)
    packed, want = (
        ops.pack_int8_weight(weight),
        spec.w8a8_linear.run(x, weight, x_scale, w_scale, out_dtype=torch.float32),
    )
    for m in (*range(1, 35), 64, 70):
        rows = x[:m], x_scale[:m]
        assert torch.equal(ops.w8a8_linear(rows[0], weight, rows[1], w_scale), want[:m])
        assert torch.equal(ops.w8a8_linear_packed(rows[0], packed, rows[1], w_scale), want[:m])
        last = x[m - 1 : m], packed, x_scale[m - 1 : m], w_scale
        assert torch.equal(ops.w8a8_linear_packed(*last), want[m - 1 : m])


@needs_native
def test_views_and_chunks_of_rows() -> None:
    """Strided rows, and more rows than one item takes."""
    x, weight, x_scale, w_scale = product(300, 40, 4096)
    want = spec.w8a8_linear.run(x, weight, x_scale, w_scale, out_dtype=torch.float32)
    wide = torch.zeros(300, 5000, dtype=torch.int8)
    wide[:, 7 : 7 + 4096] = x
    view = wide[:, 7 : 7 + 4096]
    assert torch.equal(ops.w8a8_linear_packed(view, ops.pack_int8_weight(weight), x_scale, w_scale), want)
    assert torch.equal(ops.w8a8_linear(view, weight, x_scale, w_scale), want)


@pytest.mark.parametrize("values", [(-128, -128), (-128, 127), (127, -128), (127, 127)])
@pytest.mark.parametrize("k", [4097, 131071])
def test_extremes_do_not_saturate(values: tuple[int, int], k: int) -> None:
    x, weight = (torch.full((rows, k), v, dtype=torch.int8) for rows, v in zip((9, 5), values, strict=True))
    want = torch.full((9, 5), float(values[0] * values[1] * k))
    scales = torch.ones(9), torch.ones(5)
    assert torch.equal(ops.w8a8_linear(x, weight, *scales), want)
    assert torch.equal(ops.w8a8_linear_packed(x, ops.pack_int8_weight(weight), *scales), want)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in spec.pack_int8_weight.cases()])
def test_packed_layout(case: Case) -> None:
    (weight,) = case.args
    n, k = weight.shape
    packed = ops.pack_int8_weight(weight)
    assert torch.equal(packed, spec.pack_int8_weight.run(weight))
    assert packed.shape == ((n + 15) // 16, (k + 63) // 64 * 1024)
    for i, j in ((0, 0), (n - 1, k - 1), (n // 2, k // 3)):
        if n and k:
            assert int(packed[i // 16, j // 4 * 64 + i % 16 * 4 + j % 4]) == int(weight[i, j]) + 128
    assert int((packed > 0).sum()) == int((weight > -128).sum())


def test_refuses() -> None:
    ones = torch.ones(1)
    for k, dtype, kind, want in (
        (8, torch.int32, TypeError, "out_dtype must be f32|bf16|f16, got i32"),
        (1 << 17, torch.float32, ValueError, "x must be [M, K] with K < 131072, got [1, 131072]"),
    ):
        x = torch.zeros(1, k, dtype=torch.int8)
        for name, weight in (("w8a8_linear", x), ("w8a8_linear_packed", ops.pack_int8_weight(x))):
            run, op, error = getattr(spec, name).run, getattr(ops, name), (kind, f"{name}: {want}")
            assert error_of(lambda: run(x, weight, ones, ones, out_dtype=dtype)) == error  # noqa: B023
            assert error_of(lambda: op(x, weight, ones, ones, out_dtype=dtype)) == error  # noqa: B023


def test_refuses_packed_weights_of_other_sizes() -> None:
    x, packed = torch.zeros(1, 8, dtype=torch.int8), torch.zeros(2, 1024, dtype=torch.uint8)
    want = "w8a8_linear_packed: packed must be [C, Z] with C=1 (ceil(N / 16), N from w_scale.size(0)), got [2, 1024]"
    for call in (spec.w8a8_linear_packed.run, ops.w8a8_linear_packed):
        got = error_of(lambda: call(x, packed, torch.ones(1), torch.ones(16), out_dtype=torch.float32))  # noqa: B023
        assert got == (ValueError, want)
