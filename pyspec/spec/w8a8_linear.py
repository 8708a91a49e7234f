# SPDX-License-Identifier: Apache-2.0
"""w8a8_linear: int8 activations with a scale per row times an int8 weight with a scale per channel.

    out[m, n] = out_dtype((float(sum_k x[m, k] * weight[n, k]) * w_scale[n]) * x_scale[m])

M rows, N channels, K features (K < 2^17, so that the int32 sum cannot overflow). The sum is exact; then three f32 roundings in that order
and one to out_dtype (f32, bf16 or f16): bit-exact but for f32 denormals, which kernels flush.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import DTYPE_NAMES, Case, Cost, op

CONTRACT = """
x          [M, K]   i8
weight     [N, K]   i8
x_scale    [M]      f32
w_scale    [N]      f32
*
out_dtype  dtype
-> out     [M, N]   out_dtype
"""


def check(
    sizes: dict[str, int],
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    w_scale: Tensor,
    *,
    out_dtype: torch.dtype,
) -> None:
    check_values("w8a8_linear", x, out_dtype)


def check_values(op_name: str, x: Tensor, out_dtype: torch.dtype) -> None:
    """What no shape says: the dtype of the result, and that int32 sums cannot overflow."""
    if out_dtype not in (torch.float32, torch.bfloat16, torch.float16):
        got = DTYPE_NAMES.get(out_dtype, str(out_dtype))
        raise TypeError(f"{op_name}: out_dtype must be f32|bf16|f16, got {got}")
    if x.size(1) >= 1 << 17:
        raise ValueError(f"{op_name}: x must be [M, K] with K < 131072, got {list(x.shape)}")


def cases() -> Iterator[Case]:
    for m, n, k in [(3, 20, 37), (1, 1, 1), (0, 4, 8), (2, 3, 0), (70, 33, 576)]:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            g = torch.Generator().manual_seed(m + n + k)
            x, weight = (torch.randint(-128, 128, (r, k), generator=g).to(torch.int8) for r in (m, n))
            scales = (torch.rand(r, generator=g) * 0.01 for r in (m, n))
            yield Case(
                f"{dtype}-M{m}-N{n}-K{k}".removeprefix("torch."), (x, weight, *scales), {"out_dtype": dtype}
            )


def cost(sizes: dict[str, int], *args: Tensor, out_dtype: torch.dtype) -> Cost:
    """Weight and x read, out written once."""
    m, n, k = sizes["M"], sizes["N"], sizes["K"]
    return Cost(bytes=n * k + m * k + m * n * out_dtype.itemsize, flops=2 * m * n * k)


@op(CONTRACT, check=check, cases=cases, cost=cost)
def w8a8_linear(
    x: Tensor, weight: Tensor, x_scale: Tensor, w_scale: Tensor, *, out_dtype: torch.dtype
) -> Tensor:
    sums = (x.double() @ weight.double().T).float()  # the float64 sums are exact integers
    return (sums * w_scale * x_scale[:, None]).to(out_dtype)
