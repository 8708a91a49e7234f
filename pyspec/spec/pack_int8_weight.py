# SPDX-License-Identifier: Apache-2.0
"""pack_int8_weight: rows of an int8 weight to the packed layout of CPU kernels, which w8a8_linear_packed reads.

16 channels interleaved: C = ceil(N / 16) blocks of [K/64, 16, 16, 4] bytes (K padded to a multiple of 64), flattened. A line of 64 bytes
is 16 channels at four k: an operand of VNNI; 16 lines are a tile of AMX. A byte is the value + 128; beyond N and K it is 0. Exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op

CONTRACT = """
weight     [N, K]   i8
-> packed  [N+15/16, K+63/64*1024]  u8
"""


def cases() -> Iterator[Case]:
    for n, k in [(20, 37), (16, 64), (0, 4), (3, 0), (33, 576)]:
        g = torch.Generator().manual_seed(n + k)
        yield Case(f"N{n}-K{k}", (torch.randint(-128, 128, (n, k), generator=g).to(torch.int8),))


def cost(sizes: dict[str, int], weight: Tensor) -> Cost:
    """Every element read and written once."""
    return Cost(bytes=2 * weight.numel(), flops=0)


@op(CONTRACT, cases=cases, cost=cost)
def pack_int8_weight(weight: Tensor) -> Tensor:
    n, k = weight.shape
    blocks, steps = (n + 15) // 16, (k + 63) // 64
    values = (weight.to(torch.int16) + 128).to(torch.uint8)
    padded = torch.nn.functional.pad(values, (0, 64 * steps - k, 0, 16 * blocks - n))
    return padded.reshape(blocks, 16, steps * 16, 4).transpose(1, 2).reshape(blocks, steps * 1024)
