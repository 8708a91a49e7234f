# SPDX-License-Identifier: Apache-2.0
"""add_rms_norm: adds a block's result to the residual stream in place and normalises the sum, in one pass.

    residual[m, k] <- residual[m, k] + delta[m, k]
    out = rms_norm(residual, weight, eps)

M rows, K features; the same order of sums as rms_norm, so the fused result equals the two steps bit for bit on a backend.
"""

from __future__ import annotations

from collections.abc import Iterator

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
    """Those of rms_norm, with a residual."""
    assert rms_norm.cases is not None
    for case in rms_norm.cases():
        x, weight = case.args
        yield Case(case.name, (x.flip(0).clone(), x, weight), case.kwargs)


def cost(sizes: dict[str, int], *args: Tensor, **kwargs: float) -> Cost:
    """residual and delta read, residual and out written, weight read once."""
    m, k = sizes["M"], sizes["K"]
    return Cost(bytes=4 * (4 * m * k + k), flops=5 * m * k)


@op(CONTRACT, cases=cases, cost=cost)
def add_rms_norm(residual: Tensor, delta: Tensor, weight: Tensor, *, eps: float = 1e-6) -> Tensor:
    residual.add_(delta)
    return rms_norm.reference(residual, weight, eps=eps)
