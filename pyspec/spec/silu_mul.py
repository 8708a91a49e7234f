# SPDX-License-Identifier: Apache-2.0
"""silu_mul: gates a feed-forward block with SiLU (Elfwing et al. 2017, arXiv 1702.03118).

    gate, up = gate_up[m, :F], gate_up[m, F:]
    out[m, f] = gate / (1 + exp(-gate)) * up

M rows, N = 2 F columns. Element by element; kernels use one polynomial exp2 and true divisions, so their bits are equal on all
instruction sets.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op

CONTRACT = """
gate_up    [M, N]     f32
-> out     [M, N/2]   f32
"""


def check_even(op_name: str, gate_up: Tensor) -> None:
    if gate_up.size(1) % 2:
        raise ValueError(f"{op_name}: gate_up must be [M, N] with N even, got {list(gate_up.shape)}")


def check(sizes: dict[str, int], gate_up: Tensor) -> None:
    check_even("silu_mul", gate_up)


def cases() -> Iterator[Case]:
    for m, f in [(3, 37), (1, 1), (0, 16), (5, 1536), (2, 9000)]:
        gate_up = torch.randn(m, 2 * f, generator=torch.Generator().manual_seed(m + f)) * 4
        yield Case(f"M{m}-F{f}", (gate_up,))


def cost(sizes: dict[str, int], gate_up: Tensor) -> Cost:
    """gate_up read and out written once."""
    return Cost(bytes=6 * gate_up.numel(), flops=10 * gate_up.numel())


@op(CONTRACT, check=check, cases=cases, cost=cost)
def silu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up
