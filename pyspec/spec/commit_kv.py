# SPDX-License-Identifier: Apache-2.0
"""commit_kv: after verification, moves the KV of the accepted path behind the committed tokens, in place.

    for j in range(path_len[b]): slot(kv_len[b] + j) <- slot(kv_len[b] + path[b, j])        in this order

B requests, page tables of W columns, paths of up to E nodes, P pages of S slots. `path[b]` names the accepted nodes of the
request's tree, root first, strictly increasing (so path[j] >= j, and a move never overwrites a source of a later one); entries
after path_len[b] are ignored. Pure copies: bits are kept. Other slots keep their bits. Nothing is written when a value is bad.
Pages of f8|i8 have scales [P, S, G], which move with their slots.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import DTYPE_NAMES, Case, Cost, op
from pyspec.spec.append_kv import check_scales, cpu_limit, gpu_limit, write_slots
from pyspec.spec.tile_kv import check_layout, tiled_index
from pyspec.spec.tree_attention import QUANTISED

CONTRACT = """
k_pages!     [P, S, G, D]   f32|bf16|f16|f8|i8
v_pages!     [P, S, G, D]   like k_pages
page_table   [B, W]         i32
kv_len       [B]            i32
path         [B, E]         i32
path_len     [B]            i32
k_scale?!    [P, S, G]      f32
v_scale?!    [P, S, G]      f32
*
kv_layout    str = "paged"
->
"""


def cases() -> Iterator[Case]:
    """Both layouts, every dtype, overlapping moves, empty paths."""
    for P, S, G, D, dtype, layout in [
        (7, 5, 2, 10, torch.float32, "paged"), (8, 16, 3, 64, torch.bfloat16, "tiled"), (90, 1, 1, 16, torch.float16, "paged"),
        (6, 32, 2, 32, torch.float32, "tiled"), (7, 48, 2, 16, torch.float16, "tiled"), (30, 3, 2, 8, torch.bfloat16, "paged"),
        (8, 4, 2, 32, torch.float8_e4m3fn, "paged"), (7, 5, 3, 22, torch.int8, "paged"), (6, 16, 2, 18, torch.int8, "tiled"),
    ]:  # fmt: skip
        g = torch.Generator().manual_seed(P * 100 + S)
        quantised = dtype in QUANTISED
        k_pages, v_pages = (torch.randn(2, P, S, G, D, generator=g) * (40 if quantised else 1)).to(dtype)
        scales = torch.rand(2, P, S, G, generator=g) if quantised else (None, None)
        B, W = 2, P // 2
        page_table = torch.randperm(P, generator=g, dtype=torch.int32)[: B * W].reshape(B, W)
        path = torch.tensor([[0, 2, 3, 6], [1, 2, -9, 99]], dtype=torch.int32)
        for lengths in ([4, 2], [0, 1]):
            args = (k_pages, v_pages, page_table, torch.tensor([3, 7], dtype=torch.int32), path)
            yield Case(
                f"S{S}-G{G}-D{D}-{DTYPE_NAMES[dtype]}-{layout}-{lengths[0]}",
                (*args, torch.tensor(lengths, dtype=torch.int32), *scales),
                {"kv_layout": layout},
            )


def cost(
    sizes: dict[str, int], k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor, path: Tensor,
    path_len: Tensor, *scales: Tensor | None, kv_layout: str = "paged",
) -> Cost:  # fmt: skip
    """K and V (and scales) of every node on a path read and written."""
    row = sizes["D"] * k_pages.element_size() + (4 if k_pages.dtype in QUANTISED else 0)
    return Cost(bytes=4 * int(path_len.sum()) * sizes["G"] * row, flops=0)


def _check(
    sizes: dict[str, int], k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor, path: Tensor,
    path_len: Tensor, k_scale: Tensor | None = None, v_scale: Tensor | None = None, *, kv_layout: str = "paged",
) -> None:  # fmt: skip
    check_layout("commit_kv", sizes, kv_layout)
    check_scales("commit_kv", k_pages, k_scale, v_scale, kv_layout)
    P, S, W, E = (sizes[letter] for letter in "PSWE")
    table, paths = page_table.tolist(), path.tolist()
    for b, (L, length) in enumerate(zip(kv_len.tolist(), path_len.tolist(), strict=True)):
        if L < 0:
            raise ValueError(f"commit_kv: kv_len must be >= 0, got {L} at index {b}")
        if not 0 <= length <= E:
            raise ValueError(f"commit_kv: path_len must be in [0, E={E}], got {length} at index {b}")
        for j in range(length):
            node, least = paths[b][j], paths[b][j - 1] + 1 if j else 0
            if node < least:
                raise ValueError(
                    f"commit_kv: path must be strictly increasing and >= 0, got {node} at index [{b}, {j}]"
                )
            for slot in (L + j, L + node):
                if slot >= W * S:
                    raise ValueError(
                        f"commit_kv: path must be within the W*S={W * S} slots of a request, got {node} at index [{b}, {j}]"
                    )
                if not 0 <= table[b][slot // S] < P:
                    raise ValueError(
                        f"commit_kv: page_table must be in [0, P={P}) where used, "
                        f"got {table[b][slot // S]} at index [{b}, {slot // S}]"
                    )


@op(CONTRACT, cases=cases, cost=cost, check=_check, limits={"cpu": cpu_limit, "cuda": gpu_limit})
def commit_kv(
    k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor, path: Tensor, path_len: Tensor,
    k_scale: Tensor | None = None, v_scale: Tensor | None = None, *, kv_layout: str = "paged",
) -> None:  # fmt: skip
    _, S, G, D = k_pages.shape
    targets: list[Tensor] = []
    sources: list[Tensor] = []
    for b, length in enumerate(path_len.tolist()):
        for nodes, slots in (
            (torch.arange(length, device=path.device), targets),
            (path[b, :length].long(), sources),
        ):
            logical = kv_len[b] + nodes
            slots.append(page_table[b, logical // S].long() * S + logical % S)
    if not targets:
        return
    to, source = torch.cat(targets), torch.cat(sources)
    tiled = tiled_index(S, G, D, k_pages.dtype) if kv_layout == "tiled" else (None, None)
    for pages, index in zip((k_pages, v_pages), tiled, strict=True):  # all are read before one is written
        if index is None:
            values = pages[source // S, source % S]
        else:
            values = pages.flatten(1)[(source // S)[:, None, None], index.to(pages.device)[source % S]]
        write_slots(pages, index, to, values)
    for scale in (k_scale, v_scale):
        if scale is not None:
            scale[to // S, to % S] = scale[source // S, source % S]
