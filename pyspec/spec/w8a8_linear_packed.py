# SPDX-License-Identifier: Apache-2.0
"""w8a8_linear_packed: w8a8_linear with a weight in the layout of pack_int8_weight; the same bits as with the rows.

M rows, N channels, K features; packed has C = ceil(N / 16) blocks of Z bytes. Rules and guarantees as w8a8_linear.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec.pack_int8_weight import pack_int8_weight
from pyspec.spec.w8a8_linear import cases as row_cases
from pyspec.spec.w8a8_linear import check_values, w8a8_linear

CONTRACT = """
x          [M, K]                i8
packed     [C, K+63/64*1024]     u8
x_scale    [M]                   f32
w_scale    [N]                   f32
*
out_dtype  dtype
-> out     [M, N]                out_dtype
"""


def check(
    sizes: dict[str, int], x: Tensor, packed: Tensor, x_scale: Tensor, w_scale: Tensor, *, out_dtype: torch.dtype,
) -> None:  # fmt: skip
    check_values("w8a8_linear_packed", x, out_dtype)
    blocks = (sizes["N"] + 15) // 16
    if packed.size(0) != blocks:
        raise ValueError(
            f"w8a8_linear_packed: packed must be [C, Z] with C={blocks} (ceil(N / 16), N from w_scale.size(0)), "
            f"got {list(packed.shape)}"
        )


def cases() -> Iterator[Case]:
    for case in row_cases():
        x, weight, x_scale, w_scale = case.args
        yield Case(case.name, (x, pack_int8_weight.reference(weight), x_scale, w_scale), case.kwargs)


def cost(sizes: dict[str, int], x: Tensor, packed: Tensor, *args: Tensor, out_dtype: torch.dtype) -> Cost:
    """packed and x read, out written once."""
    m, n, k = sizes["M"], sizes["N"], sizes["K"]
    return Cost(bytes=packed.numel() + m * k + m * n * out_dtype.itemsize, flops=2 * m * n * k)


@op(CONTRACT, check=check, cases=cases, cost=cost)
def w8a8_linear_packed(
    x: Tensor, packed: Tensor, x_scale: Tensor, w_scale: Tensor, *, out_dtype: torch.dtype
) -> Tensor:
    lines = packed.reshape(packed.size(0), -1, 16, 4).transpose(1, 2)
    rows = (lines.reshape(packed.size(0) * 16, -1).to(torch.int16) - 128).to(torch.int8)
    weight = rows[: w_scale.size(0), : x.size(1)]
    return w8a8_linear.reference(x, weight, x_scale, w_scale, out_dtype=out_dtype)
