# SPDX-License-Identifier: Apache-2.0
"""rms_norm_quantize: normalises rows (after adding them to a residual stream) and quantises them to int8 for w8a8_linear.

    residual[m, k] <- residual[m, k] + x[m, k]; x = residual        if there is a residual, in place
    y = rms_norm(x, weight, eps)
    scale[m] = max_k |y[m, k]| / 127
    q[m, k]  = y[m, k] / scale[m], rounded to nearest even

M rows, K features. Rows are independent: the order of sums is that of rms_norm on the same backend, and quantisation of its y is
bit-exact. A row whose max |y| is below 1e-30 is zeros with scale 0, one with NaN or infinity is zeros with scale NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec.append_kv import quantise_rows
from pyspec.spec.rms_norm import rms_norm

CONTRACT = """
x           [M, K]   f32
weight      [K]      f32
residual?!  [M, K]   f32
*
eps         float = 1e-6
-> q        [M, K]   i8
-> scale    [M]      f32
"""


def cases() -> Iterator[Case]:
    """Those of rms_norm, with and without a residual."""
    assert rms_norm.cases is not None
    for case in rms_norm.cases():
        x, weight = case.args
        yield Case(f"{case.name}-residual", (x, weight, x.flip(0).clone()), case.kwargs)
        yield Case(case.name, (x, weight, None), case.kwargs)


def check(
    sizes: dict[str, int], x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> None:
    if sizes["K"] < 1:
        raise ValueError(f"rms_norm_quantize: x must be [M, K] with K >= 1, got {list(x.shape)}")


def cost(
    sizes: dict[str, int], x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> Cost:
    """x, weight (and residual) read, q and scale (and residual) written once."""
    m, k = sizes["M"], sizes["K"]
    return Cost(bytes=m * k * (13 if residual is not None else 5) + 4 * (k + m), flops=7 * m * k)


@op(CONTRACT, cases=cases, cost=cost, check=check)
def rms_norm_quantize(
    x: Tensor, weight: Tensor, residual: Tensor | None = None, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    if residual is not None:
        x = residual.add_(x)
    return quantise_rows(rms_norm.reference(x, weight, eps=eps), torch.int8)
