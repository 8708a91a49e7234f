# SPDX-License-Identifier: Apache-2.0
"""linear_packed: linear with a weight in the layout of pack_weight; the same bits as linear with the rows.

M rows, N = num_rows channels, K features; packed has C = ceil(N / 16) blocks of Z = 16 K elements (K padded to even).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec.linear import cases as linear_cases
from pyspec.spec.linear import linear
from pyspec.spec.pack_weight import pack_weight

CONTRACT = """
x          [M, K]         f32|bf16
packed     [C, K+1/2*32]  f32|bf16
bias?      [N]            f32
*
num_rows   int
-> out     [M, num_rows]  f32
"""


def check(
    sizes: dict[str, int], x: Tensor, packed: Tensor, bias: Tensor | None = None, *, num_rows: int
) -> None:
    blocks = sizes["C"]
    if not 16 * (blocks - 1) < num_rows <= 16 * blocks:
        raise ValueError(
            f"linear_packed: num_rows must be in ({16 * (blocks - 1)}, {16 * blocks}] (from packed.size(0)={blocks} "
            f"blocks of 16), got {num_rows}"
        )
    if bias is not None and bias.size(0) != num_rows:
        raise ValueError(f"linear_packed: bias must be [N] with N={num_rows}, got {list(bias.shape)}")


def cases() -> Iterator[Case]:
    for case in linear_cases():
        x, weight, bias = case.args
        packed = pack_weight.reference(weight)
        yield Case(case.name, (x, packed, bias), {"num_rows": weight.size(0)})


def cost(sizes: dict[str, int], x: Tensor, packed: Tensor, *args: Tensor, num_rows: int) -> Cost:
    """packed and x read, out written once."""
    m, k = sizes["M"], sizes["K"]
    moved = packed.numel() * packed.element_size() + m * (k * x.element_size() + 4 * num_rows)
    return Cost(bytes=moved, flops=2 * m * num_rows * k)


@op(CONTRACT, check=check, cases=cases, cost=cost)
def linear_packed(x: Tensor, packed: Tensor, bias: Tensor | None = None, *, num_rows: int) -> Tensor:
    blocks, pairs = packed.size(0), packed.size(1) // 32
    order = (0, 2, 1, 3) if packed.dtype == torch.bfloat16 else (0, 3, 1, 2)
    shape = (pairs, 16, 2) if packed.dtype == torch.bfloat16 else (pairs, 2, 16)
    rows = packed.reshape(blocks, *shape).permute(order).reshape(blocks * 16, pairs * 2)
    return linear.reference(x, rows[:num_rows, : x.size(1)], bias)
