# SPDX-License-Identifier: Apache-2.0
"""linear and linear_packed: error against float64, the order of sums, row independence, layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contract_tests import error_of, needs_native
from torch import Tensor

from pyspec import ops, spec
from pyspec.contract import Case

linear, linear_packed = ops.linear, ops.linear_packed
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])


@needs_native
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in spec.linear.cases()])
def test_error_at_most_twice_that_of_float32(case: Case) -> None:
    x, weight, bias = case.args
    exact = x.double() @ weight.double().T + (0 if bias is None else bias)
    reference = x.float() @ weight.float().T + (0 if bias is None else bias)
    got = linear(x, weight, bias)
    assert got.shape == exact.shape
    if exact.numel():
        assert (got - exact).abs().max() <= 2 * (reference - exact).abs().max() + 3e-7 * exact.abs().max()
    assert torch.equal(linear_packed(x, ops.pack_weight(weight), bias, num_rows=weight.size(0)), got)


@needs_native
@dtypes
@pytest.mark.parametrize("k", [1, 2, 7, 64])
def test_order_of_sums(dtype: torch.dtype, k: int) -> None:
    """The documented chains, bit for bit: a float64 FMA rounded to f32 is the f32 FMA but for double rounding, which
    products of 8-bit values avoid."""
    g = torch.Generator().manual_seed(k)
    x = torch.randint(-128, 128, (3, k), generator=g).float() * 2.0 ** torch.randint(
        -12, 12, (3, k), generator=g
    )
    weight = torch.randint(-128, 128, (5, k), generator=g).float() * 2.0 ** torch.randint(
        -12, 12, (5, k), generator=g
    )
    bias = torch.randn(5, generator=g)
    chains = [np.zeros((3, 5), np.float32) for _ in range(2)]
    for i in range(k):
        product = x[:, i, None].double().numpy() * weight[None, :, i].double().numpy()
        chains[i % 2] = (product + chains[i % 2]).astype(np.float32)
    want = torch.from_numpy(chains[0] + chains[1]) + bias
    assert torch.equal(linear(x, weight.to(dtype), bias), want)


@needs_native
@dtypes
@pytest.mark.parametrize("k", [576, 33])
def test_rows_do_not_depend_on_the_batch(dtype: torch.dtype, k: int) -> None:
    g = torch.Generator().manual_seed(k)
    x, weight = torch.randn(130, k, generator=g), torch.randn(70, k, generator=g).to(dtype)
    packed = ops.pack_weight(weight)
    whole = linear_packed(x, packed, None, num_rows=70)
    for m in range(64):
        assert torch.equal(linear_packed(x[m : m + 1], packed, None, num_rows=70)[0], whole[m])
    for start, stop in ((0, 2), (1, 6), (3, 10), (7, 128)):
        assert torch.equal(linear(x[start:stop], weight), whole[start:stop])


@dtypes
def test_specification_rows_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(1)
    x, weight = torch.randn(9, 577, generator=g), torch.randn(30, 577, generator=g).to(dtype)
    whole = spec.linear.run(x, weight, None)
    for m in range(9):
        assert torch.equal(spec.linear.run(x[m : m + 1], weight, None)[0], whole[m])


@needs_native
def test_bfloat16_activations_are_widened() -> None:
    g = torch.Generator().manual_seed(2)
    x, weight = torch.randn(4, 40, generator=g).bfloat16(), torch.randn(20, 40, generator=g)
    assert torch.equal(linear(x, weight), linear(x.float(), weight))


def refused() -> list[tuple[Tensor, Tensor, Tensor | None, int, str]]:
    x, packed = torch.zeros(2, 8), torch.zeros(2, 128)
    return [
        (x, packed, None, 16, "num_rows must be in (16, 32] (from packed.size(0)=2 blocks of 16), got 16"),
        (x, packed, None, 33, "num_rows must be in (16, 32] (from packed.size(0)=2 blocks of 16), got 33"),
        (x, packed, torch.zeros(21), 20, "bias must be [N] with N=20, got [21]"),
    ]


@pytest.mark.parametrize(("x", "packed", "bias", "num_rows", "want"), refused())
def test_refuses(x: Tensor, packed: Tensor, bias: Tensor | None, num_rows: int, want: str) -> None:
    error = (ValueError, f"linear_packed: {want}")
    assert error_of(lambda: spec.linear_packed.run(x, packed, bias, num_rows=num_rows)) == error
    assert error_of(lambda: linear_packed(x, packed, bias, num_rows=num_rows)) == error
