# SPDX-License-Identifier: Apache-2.0
"""quantize_activations: f32 rows to int8 with a scale per row and group of 32, as quant_linear does on the fly.

    scale[m, g] = amax / 127 with amax = max |x[m, k]| over the 32 k of group g          (f32 divisions and products)
    q[m, k]     = round to nearest even of x[m, k] * (127 / amax)
    sums[m, g]  = integer sums of q over the two halves of the group

M rows, K features (a multiple of 32). Bit-exact. A group with amax < 1e-30 is zeros with scale 0; one with NaN or infinity is zeros
with scale NaN, so that it poisons its own row alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op

CONTRACT = """
x          [M, K]        f32
-> q       [M, K]        i8
-> scale   [M, K/32]     f32
-> sums    [M, K/32, 2]  i32
"""


def check(sizes: dict[str, int], x: Tensor) -> None:
    if sizes["K"] % 32:
        raise ValueError(
            f"quantize_activations: x must be [M, K] with K a multiple of 32, got {list(x.shape)}"
        )


def cases() -> Iterator[Case]:
    """Sizes, then one row of extremes."""
    for m, k in [(3, 64), (0, 32), (1, 32), (2, 0), (21, 576), (64, 1024)]:
        yield Case(f"M{m}-K{k}", (torch.randn(m, k, generator=torch.Generator().manual_seed(m + k)),))
    x = torch.randn(9, 512, generator=torch.Generator().manual_seed(1))
    x[:, 32:64] *= 1e37
    x[:, 64:96] *= 1e-29
    x[:, 96:128] *= 1e-31
    x[:, 128:160] *= 1e-40
    x[:, 160:192] = 0
    x[0, 200], x[1, 230], x[2, 260], x[3, 300] = torch.nan, torch.inf, -torch.inf, -torch.nan
    x[:, 320:352] = torch.arange(-16, 16) + 0.5
    x[:, 352] = 127
    x[:, 353:384] = torch.arange(-15, 16) + 0.5  # ties
    yield Case("extremes", (x,))


def cost(sizes: dict[str, int], x: Tensor) -> Cost:
    """x read, the rest written once."""
    return Cost(bytes=x.numel() * 5 + x.numel() // 32 * 12, flops=3 * x.numel())


@op(CONTRACT, check=check, cases=cases, cost=cost)
def quantize_activations(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    groups = x.unflatten(1, (x.size(1) // 32, 32))
    amax = groups.abs().max(dim=-1).values
    finite, zeros = amax.isfinite(), ~(amax >= 1e-30) | ~amax.isfinite()
    inverse = torch.where(zeros, 0.0, 127 / amax)
    q = torch.where(zeros[..., None], 0.0, (groups * inverse[..., None]).round())
    scale = torch.where(finite, torch.where(zeros, 0.0, amax / 127), torch.nan)
    sums = q.unflatten(2, (2, 16)).sum(dim=-1).int()
    return q.flatten(1).to(torch.int8), scale, sums
