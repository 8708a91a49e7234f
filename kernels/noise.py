# SPDX-License-Identifier: Apache-2.0
"""The noise of pyspec/spec/noise.py in Triton, to the last bit.

Philox4x32-10 in 32-bit integers; exp2 and log in plain float64 steps.

Kernels that call these must be launched with enable_fp_fusion=False: a fused multiply-add has other bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pyspec.spec import noise as law

_LOG2E = tl.constexpr(law.LOG2E)
_LN2_HI = tl.constexpr(law.LN2_HI)
_LN2_LO = tl.constexpr(law.LN2_LO)
_MAGIC = tl.constexpr(law.MAGIC)
_EXP2_LOWEST = tl.constexpr(law.EXP2_LOWEST)
_EXP2 = tl.constexpr(law.EXP2_COEFFICIENTS)


@triton.jit
def exp2(x):
    """2^x for float64 x <= 0; 2^-1000 below -1000."""
    clamped = tl.maximum(x, _EXP2_LOWEST)
    shifted = clamped + _MAGIC
    f = clamped - (shifted - _MAGIC)
    q = f * 0.0 + _EXP2[10]
    for i in tl.static_range(10):
        q = q * f + _EXP2[9 - i]
    y = q * f + 1.0
    return (y.to(tl.int64, bitcast=True) + (shifted.to(tl.int64, bitcast=True) << 52)).to(
        tl.float64, bitcast=True
    )


@triton.jit
def log(x):
    """Natural logarithm of positive normal float64."""
    bits = x.to(tl.int64, bitcast=True)
    k = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = (bits - (k << 52)).to(tl.float64, bitcast=True)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    q = z * 0.0 + 1.0 / 21
    for i in tl.static_range(9):
        q = q * z + 1.0 / (19 - 2 * i)
    tail = q * z * s
    kf = k.to(tl.float64)
    return kf * _LN2_HI + (2.0 * s + (2.0 * tail + kf * _LN2_LO))


@triton.jit
def philox(c0, c1, c2, c3, seed):
    """Four words for every counter (uint32 of one shape)."""
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    low_factor, high_factor = (
        tl.full(c0.shape, 0xD2511F53, tl.uint32),
        tl.full(c0.shape, 0xCD9E8D57, tl.uint32),
    )
    for _ in tl.static_range(10):
        low, high = low_factor * c0, high_factor * c2
        c0, c2 = tl.umulhi(high_factor, c2) ^ c1 ^ k0, tl.umulhi(low_factor, c0) ^ c3 ^ k1
        c1, c3 = high, low
        k0 += tl.full([], 0x9E3779B9, tl.uint32)
        k1 += tl.full([], 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def words(first, seed, stream, position, TOKENS: tl.constexpr):
    """The random words of tokens first .. first + TOKENS - 1 as uint32 [TOKENS]; first is a multiple of 4."""
    c0 = (first // 4 + tl.arange(0, TOKENS // 4)).to(tl.uint32)
    c1 = tl.zeros_like(c0) + position.to(tl.uint32, bitcast=True)
    c2 = tl.zeros_like(c0) + stream.to(tl.uint32, bitcast=True)
    c0, c1, c2, c3 = philox(c0, c1, c2, tl.zeros_like(c0), seed)
    return tl.interleave(tl.interleave(c0, c2), tl.interleave(c1, c3))


@triton.jit
def words_of(tokens, seed, stream, position):
    """The random words of any tokens (int32) as uint32 of their shape."""
    c0 = (tokens // 4).to(tl.uint32, bitcast=True)
    c1 = tl.zeros_like(c0) + position.to(tl.uint32, bitcast=True)
    c2 = tl.zeros_like(c0) + stream.to(tl.uint32, bitcast=True)
    c0, c1, c2, c3 = philox(c0, c1, c2, tl.zeros_like(c0), seed)
    low, high = tl.where(tokens % 2 == 0, c0, c1), tl.where(tokens % 2 == 0, c2, c3)
    return tl.where(tokens % 4 < 2, low, high)


@triton.jit
def uniform(seed, stream, step, node, item, PURPOSE: tl.constexpr):
    """A number in [0, 1) of one node and purpose: float64."""
    zero = tl.zeros([4], tl.uint32)  # four alike: the functions take blocks
    c3 = (node.to(tl.uint32, bitcast=True) << 8) | PURPOSE
    first, second, _, _ = philox(
        zero + item.to(tl.uint32, bitcast=True), zero + step.to(tl.uint32, bitcast=True),
        zero + stream.to(tl.uint32, bitcast=True), zero + c3, seed,
    )  # fmt: skip
    bits = ((first.to(tl.uint64) << 32) | second.to(tl.uint64)) >> 11
    return tl.max(bits.to(tl.int64).to(tl.float64) * (2.0**-53), axis=0)


@triton.jit
def exponential(first, seed, stream, position, TOKENS: tl.constexpr):
    """E = exp(-g) of those tokens, float64."""
    return exponential_of(words(first, seed, stream, position, TOKENS))


@triton.jit
def exponential_of(word):
    """E = exp(-g) of random words, float64."""
    return -log(1.0 - (word.to(tl.float64) + 0.5) * (2.0**-32))
