# SPDX-License-Identifier: Apache-2.0
"""rms_norm: root mean square normalisation (Zhang and Sennrich 2019, arXiv 1910.07467, equation 4).

    out[m, k] = x[m, k] / sqrt(sum_k x[m, k]^2 / K + eps) * weight[k]

M rows, K features. Rows are independent: kernels sum k in 16 lanes (k mod 16) with FMA, then the lanes in one fixed tree,
whatever M is. M = 0 gives an empty result.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op

CONTRACT = """
x          [M, K]   f32
weight     [K]      f32
*
eps        float = 1e-6
-> out     [M, K]   f32
"""


def cases() -> Iterator[Case]:
    """Small odd sizes first, then the sizes of a small model."""
    for m, k in [(3, 40), (1, 1), (0, 16), (5, 576), (2, 2049), (64, 576)]:
        g = torch.Generator().manual_seed(m * 10007 + k)
        yield Case(
            f"M{m}-K{k}", (torch.randn(m, k, generator=g), torch.rand(k, generator=g) + 0.5), {"eps": 1e-5}
        )


def cost(sizes: dict[str, int], *args: Tensor, **kwargs: float) -> Cost:
    """x read and out written once, weight read once."""
    m, k = sizes["M"], sizes["K"]
    return Cost(bytes=4 * (2 * m * k + k), flops=4 * m * k)


@op(CONTRACT, cases=cases, cost=cost)
def rms_norm(x: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight
