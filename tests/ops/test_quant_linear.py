# SPDX-License-Identifier: Apache-2.0
"""quant_linear: exact integers, error of the f32 sums, row independence, layouts, bad values."""

from __future__ import annotations

from typing import Any

import gguf
import pytest
import torch
from contract_tests import error_of, needs_native
from torch import Tensor

from pyspec import ops, spec
from pyspec.contract import Case
from pyspec.spec.pack_quant_weight import random_rows
from pyspec.spec.quant_formats import FORMATS, dequantize, grouped, rounded

quant_linear = torch.ops.pyspec.quant_linear
formats = pytest.mark.parametrize("name", FORMATS)


def magnitude(x: Tensor, rows: Tensor, name: str) -> Tensor:
    """Sum of |terms| of every output [M, N], which bounds the error of any order of f32 sums."""
    w = rounded(grouped(rows, name), name)
    q, scale, sums = spec.quantize_activations.reference(x)
    dense = q.double() * scale.double().repeat_interleave(32, dim=1)
    products = dense.abs() @ (w.dense() - 0).double().abs().T
    minima = (w.minimum * w.multiplier).double().repeat_interleave(FORMATS[name].group, dim=1).abs()
    return products + 2 * dense.abs() @ minima.T


def check_error(x: Tensor, rows: Tensor, name: str) -> None:
    """Every f32 rounding is 2^-24 of something no larger than the terms; there are three per group."""
    exact = spec.quant_linear.reference(x, rows, format=name).double()
    error = (quant_linear(x, rows, None, format=name).double() - exact).abs()
    groups = x.size(1) // FORMATS[name].group
    assert (error <= 2**-24 * (1 + 0.5 * groups) * magnitude(x, rows, name) + 1e-37).all()


@needs_native
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in spec.quant_linear.cases()])
def test_error_is_that_of_f32_sums(case: Case) -> None:
    exact, got = spec.quant_linear.run(*case.args, **case.kwargs), quant_linear(*case.args, **case.kwargs)
    assert got.shape == exact.shape
    if exact.numel():
        assert (got - exact).abs().max() <= 1e-6 * exact.abs().max()


@needs_native
@formats
@pytest.mark.parametrize("m", [1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 23])
def test_every_tile_of_rows(name: str, m: int) -> None:
    g = torch.Generator().manual_seed(m)
    check_error(torch.randn(m, 512, generator=g), random_rows(name, 19, 512), name)


@needs_native
@formats
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_big_and_small_activations(name: str, scale: float) -> None:
    x = torch.randn(5, 256, generator=torch.Generator().manual_seed(2)) * scale
    check_error(x, random_rows(name, 16, 256), name)


@needs_native
@formats
def test_integer_dots_are_exact(name: str) -> None:
    """One group of extremes per row: |x| all 127, so that every partial sum is as large as it can be."""
    k = FORMATS[name].block_k
    x = torch.full((4, k), 127.0)
    x[1] = -127
    x[2, ::2] = -127
    x[3, k // 2 :] = -127
    rows = random_rows(name, 48, k)
    blocks = rows.view(48, -1, FORMATS[name].block_bytes)
    for fill, part in ((0xFF, blocks[:16]), (0x00, blocks[16:32]), (0x80, blocks[32:])):
        keep = part.clone()
        part[:] = fill
        for at in {"q4_1": (0, 2), "q4_k": (0, 2), "q6_k": (208,)}.get(name, (0,)):
            part[..., at : at + 2] = keep[..., at : at + 2]
    check_error(x, rows, name)


@needs_native
@formats
@pytest.mark.parametrize("layout", ["rows", "packed"])
def test_rows_do_not_depend_on_the_batch(name: str, layout: str) -> None:
    x, rows = torch.randn(70, 768, generator=torch.Generator().manual_seed(5)), random_rows(name, 100, 768)
    weight = ops.pack_quant_weight(rows, format=name) if layout == "packed" else rows
    kwargs = {"format": name, "layout": layout, "num_rows": 100}
    whole = quant_linear(x, weight, None, **kwargs)
    for m in range(70):
        assert torch.equal(quant_linear(x[m : m + 1], weight, None, **kwargs)[0], whole[m])
    for start, stop in ((0, 2), (3, 8), (1, 10), (5, 69)):
        assert torch.equal(quant_linear(x[start:stop], weight, None, **kwargs), whole[start:stop])


@needs_native
@formats
def test_packed_equals_rows_and_bias_is_added(name: str) -> None:
    g = torch.Generator().manual_seed(6)
    x, rows, bias = (
        torch.randn(11, 512, generator=g),
        random_rows(name, 37, 512),
        torch.randn(37, generator=g),
    )
    packed = ops.pack_quant_weight(rows, format=name)
    plain = quant_linear(x, rows, None, format=name)
    assert torch.equal(quant_linear(x, packed, None, format=name, layout="packed", num_rows=37), plain)
    got = quant_linear(x, packed, bias, format=name, layout="packed", num_rows=37)
    assert torch.equal(got, plain + bias)


@needs_native
@formats
@pytest.mark.parametrize("m", [4, 5, 6, 7, 8, 12, 23])
def test_neighbouring_blocks_equal_single_ones(name: str, m: int) -> None:
    g = torch.Generator().manual_seed(m)
    x, rows = torch.randn(m, 512, generator=g), random_rows(name, 83, 512)
    packed = ops.pack_quant_weight(rows, format=name)
    got = quant_linear(x, packed, None, format=name, layout="packed", num_rows=83)
    assert torch.equal(got, quant_linear(x, rows, None, format=name))


@needs_native
def test_logits_of_many_rows_equal_those_of_one() -> None:
    n, g = 16400, torch.Generator().manual_seed(0)
    x, packed = (
        torch.randn(17, 64, generator=g),
        ops.pack_quant_weight(random_rows("q8_0", n, 64), format="q8_0"),
    )
    call = lambda x: quant_linear(x, packed, None, format="q8_0", layout="packed", num_rows=n)
    assert torch.equal(call(x), torch.cat([call(row[None]) for row in x]))


@formats
def test_specification_rows_do_not_depend_on_the_batch(name: str) -> None:
    x, rows = torch.randn(9, 512, generator=torch.Generator().manual_seed(7)), random_rows(name, 20, 512)
    whole = spec.quant_linear.run(x, rows, None, format=name)
    for m in range(9):
        assert torch.equal(spec.quant_linear.run(x[m : m + 1], rows, None, format=name)[0], whole[m])


@needs_native
@formats
def test_bad_rows_poison_themselves_alone(name: str) -> None:
    x, rows = torch.randn(12, 256, generator=torch.Generator().manual_seed(8)), random_rows(name, 16, 256)
    want = quant_linear(x, rows, None, format=name)
    bad = x.clone()
    bad[2, 17], bad[5, 200], bad[9] = torch.nan, torch.inf, 0
    got = quant_linear(bad, rows, None, format=name)
    assert got[[2, 5]].isnan().all()
    assert (got[9] == 0).all()
    keep = [m for m in range(12) if m not in (2, 5, 9)]
    assert torch.equal(got[keep], want[keep])


@pytest.mark.parametrize("name", ["q4_1", "q8_0"])
def test_quantised_activations_cost_little(name: str) -> None:
    """Against the product with f32 activations, of a real quantiser's weights: 1 % of its size at most (0.6 % measured)."""
    g = torch.Generator().manual_seed(9)
    weight, x = torch.randn(64, 2048, generator=g), torch.randn(32, 2048, generator=g)
    rows = torch.from_numpy(gguf.quantize(weight.numpy(), gguf.GGMLQuantizationType[name.upper()]))
    exact = x.double() @ dequantize(rows, name).double().T
    error = ops.quant_linear(x, rows, format=name) - exact
    assert error.square().mean().sqrt() <= 0.01 * exact.square().mean().sqrt()


def refused() -> list[Any]:
    x, rows = torch.randn(2, 256), random_rows("q4_1", 20, 256)
    packed = spec.pack_quant_weight.run(rows, format="q4_1")
    k_rows, as_packed = random_rows("q6_k", 3, 512), {"format": "q4_1", "layout": "packed", "num_rows": 20}
    return [
        (x, rows, None, {"format": "q9"}, "format must be q4_0|q4_1|q5_0|q8_0|q4_k|q6_k, got q9"),
        (x, rows, None, {"format": "q4_1", "layout": "tiles"}, "layout must be rows|packed, got tiles"),
        (
            x[:, :40], rows, None, {"format": "q4_1"},
            "x must be [M, K] with K a multiple of 32 (values of a q4_1 block), got [2, 40]",
        ),
        (x[:, :224], k_rows, None, {"format": "q6_k"}, "x must be [M, K] with K a multiple of 256 (values of a q6_k block), got [2, 224]"),
        (x, k_rows, None, {"format": "q6_k"}, "qweight must be [R, Y] with Y=210 (q6_k rows of K=256), got [3, 420]"),
        (x, rows, None, as_packed, "num_rows must be in (304, 320] (from qweight.size(0)=20 blocks of 16), got 20"),
        (x[:, :64], packed, None, as_packed, "qweight must be [R, Y] with Y=704 (q4_1 packed of K=64), got [2, 2624]"),
        (x, rows, None, {"format": "q4_1", "num_rows": 19}, "num_rows must be 0 or 20 (from qweight.size(0)), got 19"),
        (x, rows, torch.zeros(19), {"format": "q4_1"}, "bias must be [N] with N=20, got [19]"),
        (x, packed, torch.zeros(32), as_packed, "bias must be [N] with N=20, got [32]"),
    ]  # fmt: skip


@pytest.mark.parametrize(("x", "weight", "bias", "kwargs", "want"), refused())
def test_refuses(x: Tensor, weight: Tensor, bias: Tensor | None, kwargs: dict[str, Any], want: str) -> None:
    error = (ValueError, f"quant_linear: {want}")
    assert error_of(lambda: spec.quant_linear.run(x, weight, bias, **kwargs)) == error
    assert error_of(lambda: quant_linear(x, weight, bias, **kwargs)) == error
