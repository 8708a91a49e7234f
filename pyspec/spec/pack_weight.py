# SPDX-License-Identifier: Apache-2.0
"""pack_weight: rows of a f32 or bf16 weight to the packed layout of CPU kernels, which linear_packed reads.

16 channels interleaved, N padded with zero channels and K with a zero to even: C = ceil(N / 16) blocks of
    f32  [K, 16]           one line of 64 bytes is 16 channels at one k
    bf16 [K/2, 16, 2]      one line is 16 channels at two k: a B operand of AMX as it lies
flattened to Z = 16 K elements. A copy: exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op

CONTRACT = """
weight     [N, K]   f32|bf16
-> packed  [N+15/16, K+1/2*32]  like weight
"""


def cases() -> Iterator[Case]:
    for n, k in [(20, 37), (16, 64), (0, 4), (3, 0), (33, 128)]:
        weight = torch.randn(n, k, generator=torch.Generator().manual_seed(n + k))
        yield Case(f"f32-N{n}-K{k}", (weight,))
        yield Case(f"bf16-N{n}-K{k}", (weight.bfloat16(),))


def cost(sizes: dict[str, int], weight: Tensor) -> Cost:
    """Every element read and written once."""
    return Cost(bytes=2 * weight.numel() * weight.element_size(), flops=0)


@op(CONTRACT, cases=cases, cost=cost)
def pack_weight(weight: Tensor) -> Tensor:
    n, k = weight.shape
    blocks, pairs = (n + 15) // 16, (k + 1) // 2
    padded = torch.nn.functional.pad(weight, (0, 2 * pairs - k, 0, 16 * blocks - n))
    order = (0, 2, 1, 3) if weight.dtype == torch.bfloat16 else (0, 2, 3, 1)
    return padded.reshape(blocks, 16, pairs, 2).permute(order).reshape(blocks, pairs * 32)
