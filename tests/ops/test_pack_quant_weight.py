# SPDX-License-Identifier: Apache-2.0
"""GGUF formats against the gguf package, the packed form, its rounding of K-quant scales."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from contract_tests import error_of, needs_native

from pyspec import ops, spec
from pyspec.contract import Case
from pyspec.spec.pack_quant_weight import random_rows
from pyspec.spec.quant_formats import FORMATS, dequantize, grouped, pack, rounded, unpack

TYPES = {name: gguf.GGMLQuantizationType[name.upper()] for name in FORMATS}
formats = pytest.mark.parametrize("name", FORMATS)


@formats
def test_dequantize_equals_gguf(name: str) -> None:
    rows = random_rows(name, 7, 1024)
    want = torch.from_numpy(gguf.dequantize(rows.numpy(), TYPES[name]))
    got = dequantize(rows, name)
    # The package may round d * scale * q in another order: one rounding apart at most.
    assert torch.allclose(got, want, rtol=3e-7, atol=1e-9 * float(want.abs().max()))


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q8_0"])
def test_quantized_by_gguf(name: str) -> None:
    weight = np.random.default_rng(3).standard_normal((5, 512)).astype(np.float32)
    rows = gguf.quantize(weight, TYPES[name])
    assert np.array_equal(
        dequantize(torch.from_numpy(rows), name).numpy(), gguf.dequantize(rows, TYPES[name])
    )
    assert np.abs(gguf.dequantize(rows, TYPES[name]) - weight).max() < 0.5


@needs_native
@pytest.mark.parametrize("case", [pytest.param(c, id=c.name) for c in spec.pack_quant_weight.cases()])
def test_packed_bytes_equal_the_specification(case: Case) -> None:
    assert torch.equal(
        torch.ops.pyspec.pack_quant_weight(*case.args, **case.kwargs),
        spec.pack_quant_weight.run(*case.args, **case.kwargs),
    )


@formats
def test_unpack_inverts_pack(name: str) -> None:
    weight = rounded(grouped(random_rows(name, 37, 512), name), name)
    back = unpack(pack(weight, name), name, 37)
    for field in ("q", "d", "minimum", "multiplier"):
        assert torch.equal(getattr(back, field), getattr(weight, field)), field


@formats
def test_rounding_of_scales_is_bounded(name: str) -> None:
    rows = random_rows(name, 64, 2048)
    rows.view(64, -1, FORMATS[name].block_bytes)[5:9] = 0  # zero rows
    exact, got = grouped(rows, name), rounded(grouped(rows, name), name)
    assert torch.equal(got.multiplier, torch.exp2(got.multiplier.log2().round()))
    for a, b in ((exact.d, got.d * got.multiplier), (exact.minimum, got.minimum * got.multiplier)):
        assert ((a - b).abs() <= 2**-11 * a.abs()).all()
        if FORMATS[name].block_k == 32:
            assert torch.equal(a, b)


@needs_native
@pytest.mark.parametrize("name", ["q4_k", "q6_k"])
@pytest.mark.parametrize(
    "scale", [2**-24, 2**-14, 1.0, 60000.0], ids=["least", "least-normal", "one", "large"]
)
def test_k_quant_scales_of_any_size(name: str, scale: float) -> None:
    rows = random_rows(name, 20, 512)
    blocks = rows.view(20, -1, FORMATS[name].block_bytes)
    for at in (0, 2) if name == "q4_k" else (208,):
        blocks[..., at : at + 2] = torch.tensor([scale]).half().view(torch.uint8)
    packed = ops.pack_quant_weight(rows, format=name)
    assert torch.equal(packed, spec.pack_quant_weight.run(rows, format=name))
    back, want = unpack(packed, name, 20), grouped(rows, name)
    assert ((back.d * back.multiplier - want.d).abs() <= 2**-11 * want.d.abs()).all()


def test_refuses() -> None:
    rows = random_rows("q4_1", 3, 64)
    for kwargs, weight, want in (
        ({"format": "q3_k"}, rows, "pack_quant_weight: format must be q4_0|q4_1|q5_0|q8_0|q4_k|q6_k, got q3_k"),
        (
            {"format": "q4_k"}, rows,
            "pack_quant_weight: qweight must be [N, Y] with Y a multiple of 144 (bytes of a q4_k block), got [3, 40]",
        ),
    ):  # fmt: skip
        assert error_of(lambda w=weight, k=kwargs: spec.pack_quant_weight.run(w, **k)) == (ValueError, want)
        assert error_of(lambda w=weight, k=kwargs: ops.pack_quant_weight(w, **k)) == (ValueError, want)
