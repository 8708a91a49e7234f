# SPDX-License-Identifier: Apache-2.0
"""append_kv: RoPE on new keys, and the write of new keys and values into the cache, in place.

    page, offset = slots[t] // S, slots[t] % S
    k_pages[page, offset] = rope(k[t], positions[t])        (k[t] itself without a table)
    v_pages[page, offset] = v[t]                            both rounded once to the cache's dtype

T tokens, G KV heads, D head dim, P pages of S slots, X positions and Y rotary dims of the table (see rope). Slots must differ;
other slots keep their bits. `kv_layout`: see tile_kv. Nothing is written when a slot or a position is out of range.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec.rope import check_table, rope, rope_angles
from pyspec.spec.tile_kv import check_layout, tiled_index

CONTRACT = """
k            [T, G, D]      f32
v            [T, G, D]      f32
k_pages!     [P, S, G, D]   f32|bf16|f16
v_pages!     [P, S, G, D]   like k_pages
slots        [T]            i64
positions    [T]            i32
rope_table?  [X, Y]         f32
*
interleaved  bool = False
kv_layout    str = "paged"
->
"""


def cases() -> Iterator[Case]:
    """Both layouts, every dtype, odd page sizes, with and without RoPE."""
    for T, G, D, P, S, dtype, layout, rotary in [
        (3, 2, 10, 4, 5, torch.float32, "paged", 6), (5, 2, 64, 3, 16, torch.bfloat16, "tiled", 64),
        (7, 1, 32, 9, 1, torch.float16, "paged", 32), (40, 3, 64, 2, 48, torch.bfloat16, "tiled", 0),
        (4, 2, 80, 2, 32, torch.float32, "tiled", 40), (33, 3, 128, 2, 32, torch.float16, "tiled", 128),
        (0, 2, 16, 2, 16, torch.bfloat16, "paged", 16), (9, 2, 96, 5, 3, torch.bfloat16, "paged", 96),
    ]:  # fmt: skip
        g = torch.Generator().manual_seed(T * 100 + D)
        k, v = torch.randn(2, T, G, D, generator=g)
        k_pages, v_pages = torch.randn(2, P, S, G, D, generator=g).to(dtype)
        slots = torch.randperm(P * S, generator=g)[:T]
        positions = torch.randint(0, 40, (T,), generator=g, dtype=torch.int32)
        table = rope_angles(40, rotary) if rotary else None
        for interleaved in (False, True):
            yield Case(
                f"T{T}-G{G}-D{D}-S{S}-{dtype}-{layout}-{interleaved}",
                (k, v, k_pages, v_pages, slots, positions, table),
                {"interleaved": interleaved, "kv_layout": layout},
            )


def cost(
    sizes: dict[str, int], k: Tensor, v: Tensor, k_pages: Tensor, *args: Tensor, **kwargs: object
) -> Cost:
    """k and v read, their slots written, one row of the table a token."""
    return Cost(
        bytes=2 * k.numel() * (4 + k_pages.element_size()) + sizes["T"] * (12 + 4 * sizes.get("Y", 0)),
        flops=3 * sizes["T"] * sizes["G"] * sizes.get("Y", 0),
    )


def _check(
    sizes: dict[str, int], k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor, positions: Tensor,
    rope_table: Tensor | None = None, *, interleaved: bool = False, kv_layout: str = "paged",
) -> None:  # fmt: skip
    check_layout("append_kv", sizes, kv_layout)
    total = sizes["P"] * sizes["S"]
    for t, slot in enumerate(slots.tolist()):
        if not 0 <= slot < total:
            raise ValueError(f"append_kv: slots must be in [0, P*S={total}), got {slot} at index {t}")
    if rope_table is not None:
        check_table("append_kv", sizes["D"], positions, rope_table)


def write_slots(pages: Tensor, index: Tensor | None, slots: Tensor, values: Tensor) -> None:
    """Write values [T, G, D] to slots (page * S + offset) of pages; `index` of tiled_index, None for paged."""
    P, S, G, D = pages.shape
    page, offset = slots // S, slots % S
    if index is None:
        pages[page, offset] = values
        return
    flat = pages.reshape(P, S * G * D)  # a copy if the pages are strided: then written back
    flat[page[:, None, None], index.to(pages.device)[offset]] = values
    if flat.data_ptr() != pages.data_ptr():
        pages.copy_(flat.view(P, S, G, D))


@op(CONTRACT, cases=cases, cost=cost, check=_check)
def append_kv(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor, positions: Tensor, rope_table: Tensor | None = None,
    *, interleaved: bool = False, kv_layout: str = "paged",
) -> None:  # fmt: skip
    if rope_table is not None:
        k = rope.reference(k, positions, rope_table, interleaved=interleaved)
    _, S, G, D = k_pages.shape
    tiled = tiled_index(S, G, D, k_pages.dtype) if kv_layout == "tiled" else (None, None)
    for pages, index, values in zip((k_pages, v_pages), tiled, (k, v), strict=True):
        write_slots(pages, index, slots, values.to(pages.dtype))
