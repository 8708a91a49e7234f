# SPDX-License-Identifier: Apache-2.0
"""softcap: bounds logits smoothly (Gemma 2, arXiv 2408.00118, section 2).

    out[m, k] = cap * tanh(x[m, k] / cap)

Elementwise, so rows are independent. Kernels take tanh(y) = 1 - 2 / (2^(2 log2(e) y) + 1) with the polynomial exp2 of
csrc/cpu/vec.h: at most 3e-7 * cap away.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op

CONTRACT = """
x          [M, K]   f32
*
cap        float
-> out     [M, K]   f32
"""


def cases() -> Iterator[Case]:
    for m, k in [(3, 40), (1, 1), (0, 16), (2, 2049)]:
        g = torch.Generator().manual_seed(m * 10007 + k)
        yield Case(f"M{m}-K{k}", (40 * torch.randn(m, k, generator=g),), {"cap": 30.0})


def cost(sizes: dict[str, int], *args: Tensor, **kwargs: float) -> Cost:
    """x read and out written once."""
    return Cost(bytes=8 * sizes["M"] * sizes["K"], flops=14 * sizes["M"] * sizes["K"])


def check(sizes: dict[str, int], x: Tensor, *, cap: float) -> None:
    if not 0 < cap < float("inf"):
        raise ValueError(f"softcap: cap must be positive and finite, got {cap:g}")


@op(CONTRACT, check=check, cases=cases, cost=cost)
def softcap(x: Tensor, *, cap: float) -> Tensor:
    return cap * torch.tanh(x / cap)
