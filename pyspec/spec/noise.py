# SPDX-License-Identifier: Apache-2.0
"""Noise that every backend reproduces to the last bit: Philox4x32-10, and exp2 and log from plain float64 arithmetic.

    r = word (id mod 4) of philox(counter = (id div 4, position, stream, TOKENS), key = seed)
    v = (r + 1/2) 2^-32          E = -log(1 - v)          g(id) = -log(E)

v lies strictly between 0 and 1 and 1 - v is exact in float64, so E is precise where winners live (small v) and g is finite:
-3.14 < g < 22.88. Each step below is one IEEE float64 operation (no fused multiply-add, no library function).
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import torch
from torch import Tensor

# What a random number is for, in the low 8 bits of the fourth counter word, so that no two uses of a seed share one: the noise of
# the tokens, and the uniform numbers of draw_children and verify_drawn, which have the node's index above these bits.
TOKENS, DRAFT, ACCEPT, EXTRA = range(4)
LOG2E = 1.4426950408889634
LN2_HI = 0.6931471804855391  # 33 bits: a product with an exponent is exact
LN2_LO = 7.440617110012397e-11
MAGIC = 1.5 * 2.0**52  # adding it rounds to an integer, which then stands in the lowest bits
EXP2_LOWEST = -1000.0
# (2^f - 1) / f interpolated at the Chebyshev nodes of |f| <= 1/2 (relative error of 2^f: 2e-17)
EXP2_COEFFICIENTS = (
    0.6931471805599453, 0.24022650695910097, 0.0555041086648216, 0.009618129107606888, 0.0013333558146416936,
    0.0001540353044173605, 1.525273382983612e-05, 1.321544258792169e-06, 1.0178062445845774e-07, 7.072585949269223e-09,
    4.4549605981865186e-10,
)  # fmt: skip
_LOG_TERMS = 11  # log(m) = 2 sum_n s^(2n+1) / (2n+1), s = (m-1)/(m+1), |s| <= 0.172: the rest is below 3e-17
_WORD = 0xFFFFFFFF


def philox(counter: tuple[Tensor, int, int, int], seed: int) -> list[Tensor]:
    """The four 32-bit words (as int64) of Philox4x32-10 for every first counter word in counter[0] (int64)."""
    c = [counter[0], *(torch.full_like(counter[0], word & _WORD) for word in counter[1:])]
    key = [seed & _WORD, seed >> 32 & _WORD]
    for _ in range(10):
        low, high = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]  # wraps modulo 2^64: the bits are those of uint64
        c = [
            (high >> 32 & _WORD) ^ c[1] ^ key[0], high & _WORD,
            (low >> 32 & _WORD) ^ c[3] ^ key[1], low & _WORD,
        ]  # fmt: skip
        key = [key[0] + 0x9E3779B9 & _WORD, key[1] + 0xBB67AE85 & _WORD]
    return c


def exp2(x: Tensor) -> Tensor:
    """2^x for float64 x <= 0, to 2 units in the last place; below -1000 it is 2^-1000, nothing beside the 1 of a row's best."""
    clamped = x.clamp(min=EXP2_LOWEST)
    shifted = clamped + MAGIC
    f = clamped - (shifted - MAGIC)
    q = torch.full_like(f, EXP2_COEFFICIENTS[-1])
    for coefficient in EXP2_COEFFICIENTS[-2::-1]:
        q = q * f + coefficient
    y = q * f + 1.0
    return (y.view(torch.int64) + (shifted.view(torch.int64) << 52)).view(torch.float64)


def log(x: Tensor) -> Tensor:
    """Natural logarithm of positive normal float64, to 3 units in the last place (relative, also near 1)."""
    # x = 2^k m with m in [sqrt(1/2), sqrt(2)): the offset moves the mantissas above sqrt(2) to the next exponent
    bits = x.view(torch.int64)
    k = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = (bits - (k << 52)).view(torch.float64)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    q = torch.full_like(z, 1.0 / (2 * _LOG_TERMS - 1))
    for n in range(_LOG_TERMS - 2, 0, -1):
        q = q * z + 1.0 / (2 * n + 1)
    tail = q * z * s  # log(m) = 2 (s + tail)
    kf = k.double()
    return kf * LN2_HI + (2.0 * s + (2.0 * tail + kf * LN2_LO))


def log1(x: float) -> float:
    """log of one number."""
    return log(torch.tensor([x], dtype=torch.float64)).item()


def exponential(seed: int, stream: int, position: int, ids: Tensor) -> Tensor:
    """E = exp(-g) of token ids [n] int64 at one absolute position: [n] float64, standard exponential.

    Each group of four ids is made once where they stand together.
    """
    groups, index = (ids // 4).unique_consecutive(return_inverse=True)
    words = torch.stack(philox((groups, position, stream, TOKENS), seed), dim=1)
    v = (words[index, ids % 4].double() + 0.5) * 2.0**-32
    return -log(1.0 - v)


def uniform(seed: int, stream: int, step: int, node: int, purpose: int, item: int = 0) -> float:
    """A number in [0, 1), a multiple of 2^-53: the first two words of philox((item, step, stream, purpose + 256 node), seed)."""
    first, second, *_ = philox((torch.tensor([item]), step, stream, purpose | node << 8), seed)
    return ((int(first) << 32 | int(second)) >> 11) * 2.0**-53


def gumbel(seed: int, stream: int, position: int, vocab: int, device: torch.device | None = None) -> Tensor:
    """Standard Gumbel noise of every token id at one absolute position: [vocab] float64."""
    return -log(exponential(seed, stream, position, torch.arange(vocab, device=device)))
