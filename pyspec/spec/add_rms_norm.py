# SPDX-License-Identifier: Apache-2.0
"""add_rms_norm: adds a block's result to the residual stream in place and normalises the sum, in one pass.

    residual[m, k] <- residual[m, k] + delta[m, k]
    out = rms_norm(residual, weight, eps)

M rows, K features; the same order of sums as rms_norm, so the fused result equals the two steps bit for bit on a backend.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec.rms_norm import rms_norm

CONTRACT = """
residual!  [M, K]   f32
delta      [M, K]   f32
weight     [K]      f32
*
eps        float = 1e-6
-> out     [M, K]   f32
"""


def cases() -> Iterator[Case]:
    for m, k in [(3, 40), (1, 1), (0, 16), (5, 576), (2, 2049), (64, 576)]:
        g = torch.Generator().manual_seed(m * 10007 + k)
        x, delta = torch.randn(2, m, k, generator=g)
        yield Case(f"M{m}-K{k}", (x, delta, torch.rand(k, generator=g) + 0.5), {"eps": 1e-5})


def cost(sizes: dict[str, int], *args: Tensor, **kwargs: float) -> Cost:
    """residual and delta read, residual and out written, weight read once."""
    m, k = sizes["M"], sizes["K"]
    return Cost(bytes=4 * (4 * m * k + k), flops=5 * m * k)


@op(CONTRACT, cases=cases, cost=cost)
def add_rms_norm(residual: Tensor, delta: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    residual.add_(delta)
    return rms_norm.reference(residual, weight, eps=eps)
