# SPDX-License-Identifier: Apache-2.0
"""Rounding to 8 bits that kernels share: int8 and fp8 e4m3, to nearest even, in plain arithmetic.

Written out instead of cast, because Triton has no e4m3 below sm_89 and no rounding to nearest integer
outside libdevice, and so that every target and every emulation gives the same bits. e4m3 travels as uint8.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def round_even(x):
    """The nearest integer, ties to even, of |x| < 2^22 as f32: adding 3 * 2^22 leaves no bit for a
    fraction."""
    return x + 12582912.0 - 12582912.0


@triton.jit
def to_e4m3(x):
    """The e4m3 bits nearest to x f32, |x| below 464 (what rounds to 448), as uint8."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    normal = ((magnitude + 0x7FFFF + (magnitude >> 20 & 1)) >> 20) - (120 << 3)  # exponent bias 127 to 7
    subnormal = round_even(magnitude.to(tl.float32, bitcast=True) * 512.0).to(tl.int32)  # multiples of 2^-9
    code = tl.where(magnitude < 121 << 23, subnormal, normal)  # below 2^-6
    return (code | (bits >> 24 & 0x80)).to(tl.uint8)


@triton.jit
def from_e4m3(code):
    """The value of e4m3 bits (u8), exactly, as bf16.

    Exponent and fraction stand 2^120 too low in f32; multiplying makes denormals right too.
    """
    bits = code.to(tl.int32)
    magnitude = ((bits & 0x7F) << 20).to(tl.float32, bitcast=True) * (2.0**120)
    magnitude = tl.where((bits & 0x7F) == 0x7F, float("nan"), magnitude)
    return tl.where(bits >= 0x80, -magnitude, magnitude).to(tl.bfloat16)


@triton.jit
def row_scale(x, LARGEST: tl.constexpr):
    """max |x| / LARGEST of rows [R, C] f32 as [R, 1]: 0 where the maximum is below 1e-30, NaN where a value
    is not finite."""
    magnitude = tl.abs(x)
    finite = tl.min((magnitude < float("inf")).to(tl.int32), axis=1, keep_dims=True) == 1
    most = tl.max(magnitude, axis=1, keep_dims=True)
    scale = tl.where(most >= 1e-30, tl.div_rn(most, tl.full(most.shape, LARGEST, tl.float32)), 0.0)
    return tl.where(finite, scale, float("nan"))


@triton.jit
def scaled_down(x, scale):
    """x / scale where scale > 0, 0 elsewhere."""
    some = scale > 0
    quotient = tl.div_rn(tl.where(some, x, 0.0), tl.where(some, scale, 1.0) + tl.zeros_like(x))
    return tl.where(some, quotient, 0.0)
