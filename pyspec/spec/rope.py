# SPDX-License-Identifier: Apache-2.0
"""rope: rotary position embedding (Su et al. 2021, arXiv 2104.09864, equation 34) with a table of cosines and sines.

    cos, sin = rope_table[positions[t]][: Y/2], rope_table[positions[t]][Y/2 :]
    (a, b) = (x[i], x[i + Y/2])          half-split, the order of Hugging Face checkpoints
             (x[2 i], x[2 i + 1])        interleaved
    out = (a cos[i] - b sin[i], b cos[i] + a sin[i]) for i < Y/2; x[Y:] is copied

T tokens, H heads, D head dim, X positions of the table, Y <= D the rotary dim (even). Any scaling (Llama 3, YaRN, linear) is in
the table. Computed in f32 and rounded once. Every element depends on its pair and its position alone. T = 0 gives an empty result.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op

CONTRACT = """
x            [T, H, D]   f32|bf16|f16
positions    [T]         i32
rope_table   [X, Y]      f32
*
interleaved  bool = False
-> out       [T, H, D]   like x
"""


def rope_angles(X: int, Y: int, theta: float = 10000.0) -> Tensor:
    """An unscaled table [X, Y] f32: cosines, then sines, of p * theta^(-2 i / Y)."""
    angle = torch.arange(X, dtype=torch.float64)[:, None] * theta ** (
        -2 * torch.arange(Y // 2, dtype=torch.float64) / Y
    )
    return torch.cat([angle.cos(), angle.sin()], 1).float()


def check_table(op_name: str, D: int, positions: Tensor, rope_table: Tensor) -> None:
    """Raise ValueError unless the table fits the head dim and has every position."""
    X, Y = rope_table.shape
    if Y % 2 or Y > D:
        raise ValueError(
            f"{op_name}: rope_table must be [X, Y] with Y even and at most D={D}, got [{X}, {Y}]"
        )
    for t, position in enumerate(positions.tolist()):
        if not 0 <= position < X:
            raise ValueError(f"{op_name}: positions must be in [0, X={X}), got {position} at index {t}")


def cases() -> Iterator[Case]:
    """Whole and partial rotary dims, odd halves, every dtype."""
    for T, H, D, Y, dtype, interleaved in [
        (3, 2, 10, 6, torch.float32, False), (4, 3, 64, 64, torch.float32, False), (5, 2, 128, 64, torch.bfloat16, False),
        (2, 1, 80, 80, torch.float16, True), (7, 2, 66, 34, torch.bfloat16, True), (0, 2, 16, 16, torch.float32, False),
        (1, 9, 64, 64, torch.float32, True), (3, 4, 256, 256, torch.float32, False),
    ]:  # fmt: skip
        g = torch.Generator().manual_seed(T * 100 + D)
        args = (
            torch.randn(T, H, D, generator=g).to(dtype),
            torch.randint(0, 40, (T,), generator=g, dtype=torch.int32),
        )
        kwargs = {"interleaved": interleaved}
        yield Case(f"T{T}-H{H}-D{D}-Y{Y}-{dtype}-{interleaved}", (*args, rope_angles(40, Y)), kwargs)


def cost(sizes: dict[str, int], x: Tensor, positions: Tensor, rope_table: Tensor, **kwargs: bool) -> Cost:
    """x read and out written, one row of the table a token."""
    return Cost(
        bytes=2 * x.numel() * x.element_size() + sizes["T"] * (4 + 4 * sizes["Y"]),
        flops=3 * sizes["T"] * sizes["H"] * sizes["Y"],
    )


def _check(sizes: dict[str, int], x: Tensor, positions: Tensor, rope_table: Tensor, **kwargs: bool) -> None:
    check_table("rope", sizes["D"], positions, rope_table)


@op(CONTRACT, cases=cases, cost=cost, check=_check)
def rope(x: Tensor, positions: Tensor, rope_table: Tensor, *, interleaved: bool = False) -> Tensor:
    Y = rope_table.shape[1]
    wide = x if x.dtype == torch.float64 else x.float()
    cos, sin = rope_table[positions.long()][:, None].chunk(2, dim=2)
    a, b = (
        (wide[..., 0:Y:2], wide[..., 1:Y:2]) if interleaved else (wide[..., : Y // 2], wide[..., Y // 2 : Y])
    )
    pair = (a * cos - b * sin, b * cos + a * sin)
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat([turned, wide[..., Y:]], -1).to(x.dtype)
