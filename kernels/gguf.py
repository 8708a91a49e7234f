# SPDX-License-Identifier: Apache-2.0
"""GGUF rows read in Triton, group by group of 32 values: what quant_linear and quant_embedding share.

A weight is d * q + minimum with a small integer q; where what lies is said in pyspec/spec/quant_formats.py.
`row_ptrs` [R, 1] point to the first bytes of rows; g, a group's number in its row, is a scalar or [1, S].
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def half_at(ptrs, mask):
    """f16 at any address (blocks have 18, 22, 34 bytes), as f32."""
    low = tl.load(ptrs, mask=mask, other=0).to(tl.uint16)
    high = tl.load(ptrs + 1, mask=mask, other=0).to(tl.uint16)
    return (low | high << 8).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def group_values(row_ptrs, g, mask, FORMAT: tl.constexpr):
    """The integers of group g: [R, 32] i8."""
    k = tl.arange(0, 32)[None, :]
    nibble_k, nibble_shift = k % 16, k // 16 * 4  # formats of 32: value k is low, k + 16 high in a byte
    if FORMAT == "q8_0":
        q = tl.load(row_ptrs + g * 34 + 2 + k, mask=mask, other=0).to(tl.int8, bitcast=True)
    elif FORMAT == "q4_0":
        q = (tl.load(row_ptrs + g * 18 + 2 + nibble_k, mask=mask, other=0) >> nibble_shift & 15).to(
            tl.int8
        ) - 8
    elif FORMAT == "q4_1":
        q = (tl.load(row_ptrs + g * 20 + 4 + nibble_k, mask=mask, other=0) >> nibble_shift & 15).to(tl.int8)
    elif FORMAT == "q5_0":
        low = tl.load(row_ptrs + g * 22 + 6 + nibble_k, mask=mask, other=0) >> nibble_shift & 15
        fifth = tl.load(row_ptrs + g * 22 + 2 + k // 8, mask=mask, other=0) >> k % 8 & 1
        q = (low | fifth << 4).to(tl.int8) - 16
    elif FORMAT == "q4_k":  # pairs of groups share 32 bytes, the first low
        ptrs = row_ptrs + g // 8 * 144 + 16 + g % 8 // 2 * 32
        q = (tl.load(ptrs + k, mask=mask, other=0) >> g % 2 * 4 & 15).to(tl.int8)
    else:  # halves of 4 groups: 64 bytes hold groups 0, 1 low and 2, 3 high, 32 more the high bit pairs
        tl.static_assert(FORMAT == "q6_k")
        block_ptrs, half, quarter = row_ptrs + g // 8 * 210, g % 8 // 4, g % 4
        low = (
            tl.load(block_ptrs + half * 64 + quarter % 2 * 32 + k, mask=mask, other=0) >> quarter // 2 * 4
            & 15
        )
        high = tl.load(block_ptrs + 128 + half * 32 + k, mask=mask, other=0) >> quarter * 2 & 3
        q = (low | high << 4).to(tl.int8) - 32
    return q


@triton.jit
def group_scales(row_ptrs, g, mask, FORMAT: tl.constexpr):
    """d of group g and the minimum, or in q6_k d of the first and of the second 16 values; exact f32."""
    if FORMAT == "q4_k":
        block_ptrs, s = row_ptrs + g // 8 * 144, g % 8
        own = tl.load(block_ptrs + 4 + s, mask=mask, other=0)
        next4 = tl.load(block_ptrs + 8 + s, mask=mask, other=0)
        last4 = tl.load(block_ptrs + 4 + s % 4, mask=mask, other=0)  # four back, where s >= 4
        scale = tl.where(s < 4, own & 63, next4 & 15 | last4 >> 6 << 4)
        low = tl.where(s < 4, next4 & 63, next4 >> 4 | own >> 6 << 4)
        d = half_at(block_ptrs, mask) * scale.to(tl.float32)
        return d, -(half_at(block_ptrs + 2, mask) * low.to(tl.float32))
    elif FORMAT == "q6_k":
        block_ptrs = row_ptrs + g // 8 * 210
        scale_ptrs = block_ptrs + 192 + g % 8 * 2
        d = half_at(block_ptrs + 208, mask)
        first = tl.load(scale_ptrs, mask=mask, other=0).to(tl.int8, bitcast=True).to(tl.float32)
        second = tl.load(scale_ptrs + 1, mask=mask, other=0).to(tl.int8, bitcast=True).to(tl.float32)
        return d * first, d * second
    elif FORMAT == "q4_1":
        return half_at(row_ptrs + g * 20, mask), half_at(row_ptrs + g * 20 + 2, mask)
    else:
        size: tl.constexpr = 18 if FORMAT == "q4_0" else 22 if FORMAT == "q5_0" else 34
        d = half_at(row_ptrs + g * size, mask)
        return d, tl.zeros_like(d)


@triton.jit
def row_multiplier(row_ptrs, mask, K, FORMAT: tl.constexpr):
    """The power of two [R, 1] at which K-quant scales are rounded to 11 bits.

    It is 2^(e - 14) where the row's largest scale lies in [2^(e-1), 2^e).
    """
    one = tl.full(row_ptrs.shape, 1.0, tl.float32)
    if FORMAT == "q4_k" or FORMAT == "q6_k":
        most = tl.zeros(row_ptrs.shape, tl.float32)
        for first in range(0, K // 32, 32):
            g = first + tl.arange(0, 32)[None, :]
            d, second = group_scales(row_ptrs, g, mask & (g < K // 32), FORMAT)
            largest = tl.max(tl.maximum(tl.abs(d), tl.abs(second)), axis=1)
            most = tl.maximum(most, largest[:, None])
        exponent = most.to(tl.int32, bitcast=True) >> 23  # never small: 2^-24 is the least f16
        power = (exponent - 13 << 23).to(tl.float32, bitcast=True)
        one = tl.where((most > 0) & (most < float("inf")), power, one)
    return one
