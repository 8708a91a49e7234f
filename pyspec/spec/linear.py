# SPDX-License-Identifier: Apache-2.0
"""linear: x times the transpose of a weight, f32 or bf16, in f32.

    even[m, n] = FMA chain from 0 over k = 0, 2, 4 ... of x[m, k] * weight[n, k]; odd likewise over k = 1, 3, 5 ...
    out[m, n]  = (even + odd) + bias[n]

M rows, N channels, K features. x stays f32 (bf16 is widened) whatever the weight is. Guarantees: that order for every output,
so a row's bits do not depend on M, and are equal on all instruction sets; denormals are flushed. The reference sums in float64.
The weight is packed on the fly (pack_weight): use linear_packed where it is used again.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op

CONTRACT = """
x          [M, K]   f32|bf16
weight     [N, K]   f32|bf16
bias?      [N]      f32
-> out     [M, N]   f32
"""


def cases() -> Iterator[Case]:
    for m, n, k in [(3, 20, 37), (1, 1, 1), (0, 16, 8), (2, 3, 0), (7, 33, 576), (64, 48, 576)]:
        for dtype in (torch.float32, torch.bfloat16):
            g = torch.Generator().manual_seed(m + 7 * n + 31 * k)
            x, weight = torch.randn(m, k, generator=g), torch.randn(n, k, generator=g).to(dtype)
            bias = torch.randn(n, generator=g) if m % 2 else None
            yield Case(f"{dtype}-M{m}-N{n}-K{k}".removeprefix("torch."), (x, weight, bias))


def cost(sizes: dict[str, int], x: Tensor, weight: Tensor, *args: Tensor) -> Cost:
    """Weight and x read, out written once."""
    m, n, k = sizes["M"], sizes["N"], sizes["K"]
    return Cost(bytes=n * k * weight.element_size() + m * (k * x.element_size() + 4 * n), flops=2 * m * n * k)


@op(CONTRACT, cases=cases, cost=cost)
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    wide = weight.double()
    rows = [torch.mv(wide, row.double()) for row in x]  # one by one: a matrix product's order depends on M
    out = torch.stack(rows) if rows else wide.new_empty(0, weight.size(0))
    return (out if bias is None else out + bias).float()
