# SPDX-License-Identifier: Apache-2.0
"""w4a16_linear: float activations times a 4-bit weight with a scale (and zero point) per group of K.

    weight[n, k] = (float(q[n, k]) - zero[n, j]) * scale[n, j]      one f32 subtraction, one f32 product
    out          = linear(x, weight)                                its order of sums

M rows, N channels, K features, J groups. q[n, k] is the low (k even) or high (k odd) nibble of qweight[n, k // 2]; j is
k // group_size (group_size -1: one group), or g_idx[k] (act-order: groups of any k). Without zeros every zero point is 8.
Guarantees as linear.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec.linear import linear

CONTRACT = """
x          [M, K]     f32|bf16
qweight    [N, K/2]   u8
scales     [N, J]     f16|bf16|f32
zeros?     [N, J]     like scales
g_idx?     [K]        i32
*
group_size int
-> out     [M, N]     f32
"""


def check(
    sizes: dict[str, int], x: Tensor, qweight: Tensor, scales: Tensor, zeros: Tensor | None = None,
    g_idx: Tensor | None = None, *, group_size: int,
) -> None:  # fmt: skip
    k, j = sizes["K"], sizes["J"]
    if group_size not in (32, 64, 128, -1):
        raise ValueError(f"w4a16_linear: group_size must be 32|64|128|-1, got {group_size}")
    multiple = 2 if group_size == -1 else group_size
    if k == 0 or k % multiple:
        raise ValueError(
            f"w4a16_linear: x must be [M, K] with K a multiple of {multiple}, got {list(x.shape)}"
        )
    groups = 1 if group_size == -1 else k // group_size
    if j != groups:
        raise ValueError(
            f"w4a16_linear: scales must be [N, J] with J={groups} (K / group_size), got {list(scales.shape)}"
        )
    if g_idx is not None:
        outside = g_idx[(g_idx < 0) | (g_idx >= j)]
        if outside.numel():
            raise ValueError(f"w4a16_linear: g_idx must be in [0, {j}), got {int(outside[0])}")


def cases() -> Iterator[Case]:
    for m, n, k, size in [
        (3, 20, 128, 64),
        (1, 16, 32, 32),
        (0, 5, 64, -1),
        (9, 33, 384, 128),
        (2, 7, 38, -1),
    ]:
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            g = torch.Generator().manual_seed(m + n + k)
            j = 1 if size == -1 else k // size
            qweight = torch.randint(0, 256, (n, k // 2), generator=g, dtype=torch.uint8)
            scales = (torch.rand(n, j, generator=g) * 0.02).to(dtype)
            zeros = torch.randint(0, 16, (n, j), generator=g).to(dtype)
            g_idx = torch.randint(0, j, (k,), generator=g, dtype=torch.int32)
            x, name = torch.randn(m, k, generator=g), f"{dtype}-M{m}-N{n}-K{k}".removeprefix("torch.")
            yield Case(name, (x, qweight, scales, zeros, g_idx), {"group_size": size})
            yield Case(f"{name}-symmetric", (x, qweight, scales, None, None), {"group_size": size})


def cost(
    sizes: dict[str, int], x: Tensor, qweight: Tensor, scales: Tensor, *args: Any, **kwargs: int
) -> Cost:
    """Weight, scales and x read, out written once."""
    m, n, k = sizes["M"], sizes["N"], sizes["K"]
    weights = qweight.numel() + scales.numel() * scales.element_size()
    return Cost(bytes=weights + m * (k * x.element_size() + 4 * n), flops=2 * m * n * k)


def dequantize(
    qweight: Tensor, scales: Tensor, zeros: Tensor | None, g_idx: Tensor | None, group_size: int
) -> Tensor:
    """The f32 weight [N, K] that the op multiplies with."""
    q = torch.stack([qweight & 15, qweight >> 4], dim=-1).flatten(1).float()
    k = torch.arange(q.size(1), device=q.device)
    j = g_idx.long() if g_idx is not None else k * 0 if group_size == -1 else k // group_size
    return (q - (8.0 if zeros is None else zeros.float()[:, j])) * scales.float()[:, j]


@op(CONTRACT, check=check, cases=cases, cost=cost)
def w4a16_linear(
    x: Tensor, qweight: Tensor, scales: Tensor, zeros: Tensor | None = None, g_idx: Tensor | None = None, *,
    group_size: int,
) -> Tensor:  # fmt: skip
    return linear.reference(x, dequantize(qweight, scales, zeros, g_idx, group_size))
