# SPDX-License-Identifier: Apache-2.0
"""Block-quantised weights in GGUF layout, and their exact values.

A row of K weights is K / block consecutive blocks, little endian, without padding. With f16 scales d and m:

    q4_0  32 weights, 18 bytes   d, 16 x (low nibble: weight i, high: weight i + 16)       w = d (q - 8)
    q4_1  32 weights, 20 bytes   d, m, 16 nibble pairs                                     w = d q + m
    q5_0  32 weights, 22 bytes   d, 32 fifth bits, 16 nibble pairs                         w = d (q - 16)
    q8_0  32 weights, 34 bytes   d, 32 x int8                                              w = d q
    q4_k 256 weights, 144 bytes  d, m, 8 x (6-bit scale s, 6-bit minimum n) in 12 bytes,   w = (d s) q - (m n)
                                 4 x 32 bytes: low nibbles 32 weights, high nibbles the next 32
    q6_k 256 weights, 210 bytes  128 x low 4 bits, 64 x high 2 bits, 16 x int8 scale s, d  w = (d s) (q - 32)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyspec.models.fields import require

# format -> (weights, bytes) per block
QUANT_FORMATS: dict[str, tuple[int, int]] = {
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "q5_0": (32, 22),
    "q8_0": (32, 34),
    "q4_k": (256, 144),
    "q6_k": (256, 210),
}


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


def _half(blocks: torch.Tensor, start: int) -> torch.Tensor:
    """The f16 at byte `start` of every block, as f32 [.., 1]."""
    return blocks[:, start : start + 2].contiguous().view(torch.float16).float()


def _nibbles(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [.., n] -> [.., 2 n]: all low nibbles, then all high nibbles."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def _q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]).float() - 8)


def _q4_1(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]).float() + _half(blocks, 2)


def _q5_0(blocks: torch.Tensor) -> torch.Tensor:
    bit = torch.arange(8, dtype=torch.uint8)
    fifth = ((blocks[:, 2:6, None] >> bit) & 1).flatten(1)
    return _half(blocks, 0) * ((_nibbles(blocks[:, 6:]) | (fifth << 4)).float() - 16)


def _q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return _half(blocks, 0) * blocks[:, 2:].view(torch.int8).float()


def _q4_k(blocks: torch.Tensor) -> torch.Tensor:
    # Bytes 0-3 hold scales 0-3, bytes 4-7 minima 0-3 (6 bits each); bytes 8-11 the low 4 bits of scales and
    # minima 4-7, whose high 2 bits are the top bits of bytes 0-7.
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([a & 63, (c & 15) | ((a >> 6) << 4)], dim=1).float()
    minima = torch.cat([b & 63, (c >> 4) | ((b >> 6) << 4)], dim=1).float()
    q = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32).float()
    scales, minima = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return (scales[..., None] * q - minima[..., None]).flatten(1)


def _q6_k(blocks: torch.Tensor) -> torch.Tensor:
    # Two halves of 128 weights; weights j, j + 32, j + 64, j + 96 share high-bit byte j.
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64))
    shift = torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None]
    high = ((blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shift) & 3).flatten(2)
    q = (low | (high << 4)).float().reshape(-1, 16, 16) - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return (scales[..., None] * q).flatten(1)


_DEQUANTIZE = {"q4_0": _q4_0, "q4_1": _q4_1, "q5_0": _q5_0, "q8_0": _q8_0, "q4_k": _q4_k, "q6_k": _q6_k}


def dequantize(tensor: QuantTensor) -> torch.Tensor:
    """f32 [N, K]: the exact values of a quantised matrix (each product and sum rounded to f32 once)."""
    block_bytes = QUANT_FORMATS[tensor.format][1]
    blocks = tensor.data.reshape(-1, block_bytes)
    return _DEQUANTIZE[tensor.format](blocks).reshape(tensor.shape)
