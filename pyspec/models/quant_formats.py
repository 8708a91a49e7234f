# SPDX-License-Identifier: Apache-2.0
"""Block-quantised weights as a checkpoint holds them; the formats are specified in pyspec/spec/quant_formats.py."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyspec.models.fields import require
from pyspec.spec import quant_formats as formats

# format -> (weights, bytes) per block
QUANT_FORMATS = {f.name: (f.block_k, f.block_bytes) for f in formats.FORMATS.values()}


@dataclass(frozen=True)
class QuantTensor:
    """A quantised matrix [N, K]. data: uint8 [N, K / block * block_bytes], often a view of a mapped file."""

    format: str
    shape: tuple[int, int]
    data: torch.Tensor

    def __post_init__(self) -> None:
        known = self.format in QUANT_FORMATS
        require(known, "format", f"one of {', '.join(QUANT_FORMATS)}", self.format, "QuantTensor")
        block, block_bytes = QUANT_FORMATS[self.format]
        ok = len(self.shape) == 2 and min(self.shape) > 0 and self.shape[1] % block == 0
        require(ok, "shape", f"(N, K) with K a multiple of {block}", self.shape, "QuantTensor")
        expected = [self.shape[0], self.shape[1] // block * block_bytes]
        if self.data.dtype != torch.uint8:
            raise TypeError(f"QuantTensor: data must be uint8, got {self.data.dtype}")
        shape = list(self.data.shape)
        require(shape == expected, "data", f"{expected}", shape, "QuantTensor")


def dequantize(tensor: QuantTensor) -> torch.Tensor:
    """f32 [N, K]: the exact values of a quantised matrix (each product and sum rounded to f32 once)."""
    return formats.dequantize(tensor.data, tensor.format)
