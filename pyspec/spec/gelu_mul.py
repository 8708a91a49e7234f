# SPDX-License-Identifier: Apache-2.0
"""gelu_mul: gates a feed-forward block with GELU in its tanh approximation (Hendrycks and Gimpel 2016, arXiv 1606.08415).

    gate, up = gate_up[m, :F], gate_up[m, F:]
    out[m, f] = gate / 2 * (1 + tanh(sqrt(2 / pi) * (gate + 0.044715 gate^3))) * up

M rows, N = 2 F columns. Element by element; kernels use one polynomial exp2 and true divisions, so their bits are equal on all
instruction sets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyspec.contract import op
from pyspec.spec.silu_mul import CONTRACT, cases, check_even, cost


def check(sizes: dict[str, int], gate_up: Tensor) -> None:
    check_even("gelu_mul", gate_up)


@op(CONTRACT, check=check, cases=cases, cost=cost)
def gelu_mul(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.gelu(gate, approximate="tanh") * up
