# SPDX-License-Identifier: Apache-2.0
"""Dequantisation, value for value against the reference implementation of the gguf package."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from pyspec.models import QuantTensor, dequantize
from pyspec.models.quant_formats import QUANT_FORMATS


def _random_blocks(fmt: str, rows: int, blocks: int) -> np.ndarray:
    """Random bytes with finite f16 scales of every size, subnormals included."""
    rng = np.random.default_rng(0)
    _, size = QUANT_FORMATS[fmt]
    data = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    halves = {"q4_1": [0, 2], "q4_k": [0, 2], "q6_k": [208]}.get(fmt, [0])
    for start in halves:
        data[:, :, start + 1] &= 0xBF  # exponent below its maximum: no infinity, no NaN
    return data.reshape(rows, -1)


@pytest.mark.parametrize("fmt", QUANT_FORMATS)
@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (7, 3), (64, 5)])
def test_exact(fmt: str, rows: int, blocks: int) -> None:
    data = _random_blocks(fmt, rows, blocks)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[fmt.upper()])
    tensor = QuantTensor(fmt, (rows, blocks * QUANT_FORMATS[fmt][0]), torch.from_numpy(data))
    got = dequantize(tensor)
    assert got.dtype == torch.float32
    assert got.shape == tensor.shape
    assert np.array_equal(got.numpy(), expected)  # equal values; the sign of a zero is free


def test_rows_of_a_view() -> None:
    data = torch.from_numpy(_random_blocks("q6_k", 8, 2))
    whole = dequantize(QuantTensor("q6_k", (8, 512), data))
    assert torch.equal(dequantize(QuantTensor("q6_k", (4, 512), data[::2])), whole[::2])


@pytest.mark.parametrize(
    ("fmt", "shape", "data", "error", "words"),
    [
        ("q2_k", (1, 256), torch.zeros(1, 84), ValueError, "format must be one of q4_0"),
        ("q4_0", (1, 33), torch.zeros(1, 18), ValueError, r"shape must be \(N, K\) with K a multiple of 32"),
        ("q4_0", (0, 32), torch.zeros(0, 18), ValueError, "shape must be"),
        ("q4_0", (1, 32), torch.zeros(1, 18), TypeError, "data must be uint8, got torch.float32"),
        ("q4_0", (1, 32), torch.zeros(1, 17, dtype=torch.uint8), ValueError, r"data must be \[1, 18\], got"),
    ],
)
def test_refuses(
    fmt: str, shape: tuple[int, int], data: torch.Tensor, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"QuantTensor: {words}"):
        QuantTensor(fmt, shape, data)
