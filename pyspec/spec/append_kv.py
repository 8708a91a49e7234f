# SPDX-License-Identifier: Apache-2.0
"""append_kv: RoPE on new keys, and the write of new keys and values into the cache, in place.

    page, offset = slots[t] // S, slots[t] % S
    k_pages[page, offset] = rope(k[t], positions[t])        (k[t] itself without a table), computed in f32
    v_pages[page, offset] = v[t]                            both rounded once to the cache's dtype
    pages of f8|i8, per token t and KV head g, with x the f32 row [D] of either:
        k_scale[page, offset, g] = max |x| / 448 (f8) or / 127 (i8)
        k_pages[page, offset, g] = x / k_scale, rounded to nearest even; v alike

T tokens, G KV heads, D head dim, P pages of S slots, X positions and Y rotary dims of the table (see rope). Slots must differ;
other slots keep their bits. `kv_layout`: see tile_kv; pages of f8 are paged. Nothing is written when a slot or a position is
out of range. Quantisation is bit-exact; a row whose max |x| is below 1e-30 is zeros with scale 0, one with NaN or infinity is zeros
with scale NaN, so that it poisons itself alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import DTYPE_NAMES, Case, Cost, op
from pyspec.spec.rope import check_table, rope, rope_angles
from pyspec.spec.tile_kv import check_layout, tiled_index
from pyspec.spec.tree_attention import FLOAT8, QUANTISED

CONTRACT = """
k            [T, G, D]      f32|bf16|f16
v            [T, G, D]      like k
k_pages!     [P, S, G, D]   f32|bf16|f16|f8|i8
v_pages!     [P, S, G, D]   like k_pages
slots        [T]            i64
positions    [T]            i32
rope_table?  [X, Y]         f32
k_scale?!    [P, S, G]      f32
v_scale?!    [P, S, G]      f32
*
interleaved  bool = False
kv_layout    str = "paged"
->
"""


TINY = 1e-30  # rows below are zeros: scales stay normal numbers


def cases() -> Iterator[Case]:
    """Both layouts, every dtype of keys and of the cache, odd page sizes, with and without RoPE."""
    f32, bf16, f16, f8, i8 = torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8
    for T, G, D, P, S, source, dtype, layout, rotary in [
        (3, 2, 10, 4, 5, f32, f32, "paged", 6), (5, 2, 64, 3, 16, f32, bf16, "tiled", 64),
        (7, 1, 32, 9, 1, f32, f16, "paged", 32), (40, 3, 64, 2, 48, f32, bf16, "tiled", 0),
        (4, 2, 80, 2, 32, f32, f32, "tiled", 40), (33, 3, 128, 2, 32, bf16, f16, "tiled", 128),
        (0, 2, 16, 2, 16, f32, bf16, "paged", 16), (9, 2, 96, 5, 3, f16, bf16, "paged", 96),
        (6, 3, 64, 4, 3, f32, i8, "paged", 64), (5, 2, 34, 4, 5, bf16, f8, "paged", 10),
        (20, 2, 34, 2, 32, f16, i8, "tiled", 34),
    ]:  # fmt: skip
        g = torch.Generator().manual_seed(T * 100 + D)
        k, v = torch.randn(2, T, G, D, generator=g).to(source)
        k_pages, v_pages = torch.randn(2, P, S, G, D, generator=g).to(dtype)
        k_scale, v_scale = torch.rand(2, P, S, G, generator=g) if dtype in QUANTISED else (None, None)
        slots = torch.randperm(P * S, generator=g)[:T]
        positions = torch.randint(0, 40, (T,), generator=g, dtype=torch.int32)
        table = rope_angles(40, rotary) if rotary else None
        for interleaved in (False, True):
            yield Case(
                f"T{T}-G{G}-D{D}-S{S}-{DTYPE_NAMES[source]}-{DTYPE_NAMES[dtype]}-{layout}-{interleaved}",
                (k, v, k_pages, v_pages, slots, positions, table, k_scale, v_scale),
                {"interleaved": interleaved, "kv_layout": layout},
            )


def cost(
    sizes: dict[str, int], k: Tensor, v: Tensor, k_pages: Tensor, *args: Tensor | None, **kwargs: object
) -> Cost:
    """k and v read, their slots (and scales) written, one row of the table a token."""
    T, G = sizes["T"], sizes["G"]
    scales = 8 * T * G if k_pages.dtype in QUANTISED else 0
    return Cost(
        bytes=2 * k.numel() * (k.element_size() + k_pages.element_size())
        + scales
        + T * (12 + 4 * sizes.get("Y", 0)),
        flops=3 * T * G * sizes.get("Y", 0),
    )


def check_scales(
    op_name: str, k_pages: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, kv_layout: str
) -> None:
    """Raise ValueError unless pages of 8 bits, and only they, have scales, and those of f8 are paged."""
    quantised = k_pages.dtype in QUANTISED
    for name, scale in (("k_scale", k_scale), ("v_scale", v_scale)):
        if (scale is not None) != quantised:
            got = "None" if scale is None else list(scale.shape)
            raise ValueError(f"{op_name}: {name} must be given exactly when pages are f8|i8, got {got}")
    if k_pages.dtype == FLOAT8 and kv_layout != "paged":
        raise ValueError(f"{op_name}: kv_layout must be paged when pages are f8, got {kv_layout}")


def _check(
    sizes: dict[str, int], k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor, positions: Tensor,
    rope_table: Tensor | None = None, k_scale: Tensor | None = None, v_scale: Tensor | None = None,
    *, interleaved: bool = False, kv_layout: str = "paged",
) -> None:  # fmt: skip
    check_layout("append_kv", sizes, kv_layout)
    check_scales("append_kv", k_pages, k_scale, v_scale, kv_layout)
    total = sizes["P"] * sizes["S"]
    for t, slot in enumerate(slots.tolist()):
        if not 0 <= slot < total:
            raise ValueError(f"append_kv: slots must be in [0, P*S={total}), got {slot} at index {t}")
    if rope_table is not None:
        check_table("append_kv", sizes["D"], positions, rope_table)


def cpu_limit(sizes: dict[str, int], *args: Tensor | None, **kwargs: object) -> str | None:
    """Why the CPU kernels cannot append to or move these pages, or None."""
    k_pages = next(arg for arg in args if arg is not None and arg.dim() == 4)
    if k_pages.dtype != FLOAT8:
        return None
    return f"k_pages must be f32|bf16|f16|i8, got {DTYPE_NAMES[k_pages.dtype]}"


def gpu_limit(
    sizes: dict[str, int], *args: Tensor | None, kv_layout: str = "paged", **kwargs: object
) -> str | None:
    """Why GPU kernels cannot append to or move these pages, or None."""
    return None if kv_layout == "paged" else f"kv_layout must be paged, got {kv_layout}"


def quantise_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows x [..., D] f32 as values [..., D] of f8 or i8 and scales [...] f32."""
    most = x.abs().amax(-1)
    scale = torch.where(most >= TINY, most / QUANTISED[dtype], 0.0)
    scale = torch.where(most.isfinite(), scale, torch.nan)
    values = torch.where((scale > 0)[..., None], x / scale[..., None], 0.0)
    return (values.round() if dtype == torch.int8 else values).to(dtype), scale


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


@op(CONTRACT, cases=cases, cost=cost, check=_check, limits={"cpu": cpu_limit, "cuda": gpu_limit})
def append_kv(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor, positions: Tensor, rope_table: Tensor | None = None,
    k_scale: Tensor | None = None, v_scale: Tensor | None = None, *, interleaved: bool = False, kv_layout: str = "paged",
) -> None:  # fmt: skip
    k, v = k.float(), v.float()
    if rope_table is not None:
        k = rope.reference(k, positions, rope_table, interleaved=interleaved)
    _, S, G, D = k_pages.shape
    tiled = tiled_index(S, G, D, k_pages.dtype) if kv_layout == "tiled" else (None, None)
    for pages, scale, index, values in zip(
        (k_pages, v_pages), (k_scale, v_scale), tiled, (k, v), strict=True
    ):
        if scale is None:
            write_slots(pages, index, slots, values.to(pages.dtype))
        else:
            rows, scale[slots // S, slots % S] = quantise_rows(values, pages.dtype)
            write_slots(pages, index, slots, rows)
