# SPDX-License-Identifier: Apache-2.0
"""fp8_linear: float activations times an 8-bit float weight (e4m3) with a scale per tensor, channel or block.

    out[m, n] = sum over blocks b = 0, 1, 2 ... of (sum_{k in b} x[m, k] * float(weight[n, k])) * scale(n, b)

M rows, N channels, K features. granularity "tensor": scale [1, 1]; "channel": scale [N, 1]; both multiply the whole sum, one block
of all K. "block": scale [N/128, K/128] rounded up, that of 128 channels and 128 k. Products with e4m3 (4 significant bits) are exact in
f32 where x is bf16. Guarantees as linear: a row's bits do not depend on M; NaN weights (e4m3 has no infinities) give NaN. The
reference sums in float64.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec.linear import linear

CONTRACT = """
x           [M, K]   f32|bf16
weight      [N, K]   f8
scale       [X, Y]   f32
*
granularity str = "channel"
-> out      [M, N]   f32
"""

BLOCK = 128  # channels and k that share a scale


def scale_shape(n: int, k: int, granularity: str) -> tuple[int, int]:
    """The shape that `scale` must have."""
    if granularity == "block":
        return (n + BLOCK - 1) // BLOCK, (k + BLOCK - 1) // BLOCK
    return (n if granularity == "channel" else 1), 1


def check(
    sizes: dict[str, int], x: Tensor, weight: Tensor, scale: Tensor, *, granularity: str = "channel"
) -> None:
    if granularity not in ("tensor", "channel", "block"):
        raise ValueError(f"fp8_linear: granularity must be tensor|channel|block, got {granularity}")
    rows, columns = scale_shape(sizes["N"], sizes["K"], granularity)
    if list(scale.shape) != [rows, columns]:
        raise ValueError(
            f"fp8_linear: scale must be [X, Y] with X={rows}, Y={columns} (granularity {granularity}), "
            f"got {list(scale.shape)}"
        )


def cases() -> Iterator[Case]:
    for m, n, k in [(3, 20, 37), (1, 1, 1), (0, 16, 8), (2, 3, 0), (7, 150, 384), (33, 48, 592)]:
        for granularity in ("channel", "tensor", "block"):
            g = torch.Generator().manual_seed(m + 7 * n + 31 * k)
            x, weight = torch.randn(m, k, generator=g), torch.randn(n, k, generator=g)
            scale = torch.rand(scale_shape(n, k, granularity), generator=g) * 0.1
            args = (x, weight.to(torch.float8_e4m3fn), scale)
            yield Case(f"{granularity}-M{m}-N{n}-K{k}", args, {"granularity": granularity})


def cost(sizes: dict[str, int], x: Tensor, weight: Tensor, scale: Tensor, **kwargs: str) -> Cost:
    """Weight, scales and x read, out written once."""
    m, n, k = sizes["M"], sizes["N"], sizes["K"]
    return Cost(bytes=n * k + 4 * scale.numel() + m * (k * x.element_size() + 4 * n), flops=2 * m * n * k)


def dequantize(weight: Tensor, scale: Tensor, granularity: str) -> Tensor:
    """The float64 weight [N, K] that the op multiplies with, exactly."""
    n, k = weight.shape
    wide = scale.double()
    if granularity == "block":
        wide = wide.repeat_interleave(BLOCK, dim=0)[:n].repeat_interleave(BLOCK, dim=1)[:, :k]
    return weight.double() * wide


@op(CONTRACT, check=check, cases=cases, cost=cost)
def fp8_linear(x: Tensor, weight: Tensor, scale: Tensor, *, granularity: str = "channel") -> Tensor:
    return linear.reference(x, dequantize(weight, scale, granularity))
