# SPDX-License-Identifier: Apache-2.0
"""The GGUF block formats Q4_0, Q4_1, Q5_0, Q8_0, Q4_K and Q6_K as facts, and their packed form for CPUs.

A row is a run of blocks of 32 or 256 values. A weight is d * q + minimum with d and minimum per group of 32 values (of 16 in
q6_k) and a small integer q. In the formats of 32 both are f16 as stored. In K-quants d = f16 * 6-bit (8-bit in q6_k) integer,
which is no f16: ops round it, and minimum, once to the 11 bits of f16 at a power of two per row (`rounded`), an error of at
most 2^-11 of d. `dequantize` is exact.

Packed form, 16 channels a block (N padded with zero channels), bytes in this order:
    multiplier [16] f32                     the row's power of two, 1 in formats of 32
    d [K/32, 16] f16                        with minimum: [K/32, 2, 16], d then minimum; q6_k: d of the first, the second 16 k
    padding to 64 bytes
    4-bit values [K/32, 4, 16, 4] u8        [g, r, c, j] has channel c at k = 4 r + j (low nibble) and 16 + 4 r + j (high)
    other values [K/32, 8, 16, 4] u8        [g, r, c, j] has channel c at k = 4 r + j; stored as q + offset
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Format:
    """Sizes of a format: values and bytes of a GGUF block; bits, offset and scales of the packed form."""

    name: str
    block_k: int
    block_bytes: int
    bits: int
    offset: int
    has_min: bool = False
    half_groups: bool = False

    @property
    def group(self) -> int:
        """Values that share a scale."""
        return 16 if self.half_groups else 32

    @property
    def scale_bytes(self) -> int:
        return 64 if self.has_min or self.half_groups else 32

    def row_bytes(self, k: int) -> int:
        """Bytes of a GGUF row of k values."""
        return k // self.block_k * self.block_bytes

    def values_offset(self, k: int) -> int:
        return (64 + k // 32 * self.scale_bytes + 63) // 64 * 64

    def packed_bytes(self, k: int) -> int:
        """Bytes of a packed block of 16 channels of k values."""
        return self.values_offset(k) + k // 32 * 64 * self.bits

    def packed_k(self, size: int) -> int:
        """The k of a packed block of `size` bytes."""
        return (size - 64) // (self.scale_bytes + 64 * self.bits) * 32


FORMATS = {
    f.name: f
    for f in (
        Format("q4_0", 32, 18, 4, 8),
        Format("q4_1", 32, 20, 4, 0, has_min=True),
        Format("q5_0", 32, 22, 8, 16),
        Format("q8_0", 32, 34, 8, 128),
        Format("q4_k", 256, 144, 4, 0, has_min=True),
        Format("q6_k", 256, 210, 8, 32, half_groups=True),
    )
}


@dataclass(frozen=True)
class Grouped:
    """weight[n, k] = multiplier[n] * (d[n, j] * q[n, k] + minimum[n, j]) with j = k // group."""

    q: Tensor  # [N, K] i32
    d: Tensor  # [N, J] f32
    minimum: Tensor  # [N, J] f32
    multiplier: Tensor  # [N, 1] f32

    def dense(self) -> Tensor:
        """The weight [N, K] f32: the products are exact, the sum rounds once."""
        n, k = self.q.shape
        q = self.q.reshape(n, self.d.size(1), k // self.d.size(1))
        weight = (q * self.d[..., None] + self.minimum[..., None]) * self.multiplier[..., None]
        return weight.reshape(n, k)


def grouped(qweight: Tensor, name: str) -> Grouped:
    """GGUF rows [N, Y] u8 as integers, scales and minima, exactly."""
    f = FORMATS[name]
    blocks = qweight.unflatten(1, (qweight.size(1) // f.block_bytes, f.block_bytes))
    read = {"q8_0": _read_q8_0, "q4_k": _read_q4_k, "q6_k": _read_q6_k}.get(name)
    q, d, minimum = read(blocks) if read else _read_nibbles(blocks, f)
    n = qweight.size(0)
    return Grouped(
        q.reshape(n, blocks.size(1) * f.block_k).int() - (0 if name == "q8_0" else f.offset),
        d.flatten(1),
        minimum.flatten(1),
        torch.ones(n, 1, device=qweight.device),
    )


def rounded(weight: Grouped, name: str) -> Grouped:
    """The weight that ops compute with: K-quant scales as f16 times a power of two per row, the others as they are."""
    if FORMATS[name].block_k == 32:
        return weight
    most = torch.cat([weight.d.abs(), weight.minimum.abs()], dim=1).amax(dim=1, keepdim=True)
    exponent = torch.where((most > 0) & most.isfinite(), torch.frexp(most).exponent - 14, 0)
    multiplier = torch.ldexp(torch.ones_like(most), exponent)
    return Grouped(
        weight.q,
        (weight.d / multiplier).half().float(),
        (weight.minimum / multiplier).half().float(),
        multiplier,
    )


def dequantize(qweight: Tensor, name: str) -> Tensor:
    """GGUF rows [N, Y] u8 as the f32 weight [N, K] that the format defines."""
    return grouped(qweight, name).dense()


def pack(weight: Grouped, name: str) -> Tensor:
    """The packed form [ceil(N / 16), packed_bytes] u8."""
    f = FORMATS[name]
    n, k = weight.q.shape
    blocks, groups = (n + 15) // 16, k // 32
    pad = lambda t: torch.nn.functional.pad(t, (0, 0, 0, blocks * 16 - n))
    q = pad((weight.q + f.offset).to(torch.uint8)).reshape(blocks, 16, groups, 8, 4).permute(0, 2, 3, 1, 4)
    if f.bits == 4:
        q = q[:, :, :4] | q[:, :, 4:] << 4
    parts = [weight.d, weight.minimum] if f.has_min else [weight.d]
    scales = torch.stack([pad(t).reshape(blocks, 16, groups, t.size(1) // groups) for t in parts], dim=-1)
    scales = scales.permute(0, 2, 3, 4, 1).half().clone(memory_format=torch.contiguous_format)
    out = weight.q.new_zeros(blocks, f.packed_bytes(k), dtype=torch.uint8)
    out[:, :64] = (
        pad(weight.multiplier)
        .clone(memory_format=torch.contiguous_format)
        .reshape(blocks, 16)
        .view(torch.uint8)
    )
    out[:, 64 : 64 + groups * f.scale_bytes] = scales.view(torch.uint8).flatten(1)
    out[:, f.values_offset(k) :] = q.flatten(1)
    return out


def unpack(packed: Tensor, name: str, num_rows: int) -> Grouped:
    """The weight in a packed form; inverse of `pack`."""
    f = FORMATS[name]
    blocks, k = packed.size(0), f.packed_k(packed.size(1))
    groups = k // 32
    q = packed[:, f.values_offset(k) :].reshape(blocks, groups, f.bits, 16, 4)
    if f.bits == 4:
        q = torch.cat([q & 15, q >> 4], dim=2)
    q = q.permute(0, 3, 1, 2, 4).reshape(blocks * 16, k).int() - f.offset
    scales = (
        packed[:, 64 : 64 + groups * f.scale_bytes]
        .clone(memory_format=torch.contiguous_format)
        .view(torch.float16)
        .float()
    )
    parts = f.scale_bytes // 32
    scales = scales.reshape(blocks, groups, parts, 16).permute(2, 0, 3, 1).reshape(parts, blocks * 16, groups)
    d = torch.stack([scales[0], scales[1]], dim=-1).flatten(1) if f.half_groups else scales[0]
    minimum = scales[1] if f.has_min else torch.zeros_like(d)
    multiplier = (
        packed[:, :64]
        .clone(memory_format=torch.contiguous_format)
        .view(torch.float32)
        .reshape(blocks * 16, 1)
    )
    return Grouped(q[:num_rows], d[:num_rows], minimum[:num_rows], multiplier[:num_rows])


def _f16(data: Tensor) -> Tensor:
    return data.clone(memory_format=torch.contiguous_format).view(torch.float16).float()


def _read_nibbles(blocks: Tensor, f: Format) -> tuple[Tensor, Tensor, Tensor]:
    """q4_0: d, 16 bytes; q4_1: d, minimum, 16 bytes; q5_0: d, 32 fifth bits, 16 bytes (value k low, k + 16 high)."""
    d, nibbles = _f16(blocks[..., :2]), blocks[..., -16:]
    q = torch.cat([nibbles & 15, nibbles >> 4], dim=-1)
    if f.name == "q5_0":
        fifth = blocks[..., 2:6, None] >> torch.arange(8, dtype=torch.uint8, device=blocks.device) & 1
        q = q | fifth.flatten(-2) << 4
    return q, d, _f16(blocks[..., 2:4]) if f.has_min else torch.zeros_like(d)


def _read_q8_0(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d, 32 signed bytes."""
    d = _f16(blocks[..., :2])
    return (
        blocks[..., 2:].clone(memory_format=torch.contiguous_format).view(torch.int8),
        d,
        torch.zeros_like(d),
    )


def _read_q4_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d, dmin, eight 6-bit scales and minima in 12 bytes, 128 bytes: 64 values in 32 bytes, low nibbles first."""
    d, dmin, s = _f16(blocks[..., :2]), _f16(blocks[..., 2:4]), blocks[..., 4:16]
    scale = torch.cat([s[..., :4] & 63, s[..., 8:] & 15 | s[..., :4] >> 6 << 4], dim=-1)
    low = torch.cat([s[..., 4:8] & 63, s[..., 8:] >> 4 | s[..., 4:8] >> 6 << 4], dim=-1)
    nibbles = blocks[..., 16:].unflatten(-1, (4, 32))
    q = torch.stack([nibbles & 15, nibbles >> 4], dim=-2).flatten(-3)
    return q, d * scale, -(dmin * low)


def _read_q6_k(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales, d: halves of 128 values, quarters of 32."""
    low = blocks[..., :128].unflatten(-1, (2, 64))
    low = torch.cat([low & 15, low >> 4], dim=-1)
    high = blocks[..., 128:192].unflatten(-1, (2, 32))
    high = torch.cat([high >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)
    scale = blocks[..., 192:208].clone(memory_format=torch.contiguous_format).view(torch.int8)
    d = _f16(blocks[..., 208:]) * scale
    return (low | high << 4).flatten(-2), d, torch.zeros_like(d)
