# SPDX-License-Identifier: Apache-2.0
"""tile_kv: converts KV pages between the paged layout and the CPU kernels' tiled one (or back, `inverse`).

    paged   K, V page [S][G][D]                                          what every backend accepts
    tiled   K page [G][S/16][D/2][16][2], V page [G][S/2][D][2]          16-bit types
            K page [G][S/16][D][16],      V page [G][S][D]               f32 and i8

P pages, S slots (a multiple of 16), G KV heads, D head dim (even). Both layouts have the shape [P, S, G, D]; the tiled one is
the order of the elements in a contiguous page. A 16-key tile of K and a pair of V rows are operands of the CPU's kernels as
they lie. A pure permutation: bits are kept, also of NaN.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op

CONTRACT = """
k_pages    [P, S, G, D]   f32|bf16|f16|i8
v_pages    [P, S, G, D]   like k_pages
*
inverse    bool = False
-> k       [P, S, G, D]   like k_pages
-> v       [P, S, G, D]   like k_pages
"""


def tiled_index(S: int, G: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Where element (s, g, d) of a K page and of a V page lies in a tiled page: two [S, G, D] i64."""
    s, g, d = torch.arange(S)[:, None, None], torch.arange(G)[:, None], torch.arange(D)
    tile = (g * S + s // 16 * 16) * D
    if dtype.itemsize == 2:
        return tile + d // 2 * 32 + s % 16 * 2 + d % 2, (g * S + s // 2 * 2) * D + d * 2 + s % 2
    return tile + d * 16 + s % 16, (g * S + s) * D + d


def check_layout(op_name: str, sizes: dict[str, int], kv_layout: str) -> None:
    """Raise ValueError unless pages of these sizes can have this layout."""
    S, D = sizes["S"], sizes["D"]
    shape = [sizes["P"], S, sizes["G"], D]
    if kv_layout not in ("paged", "tiled"):
        raise ValueError(f"{op_name}: kv_layout must be paged|tiled, got {kv_layout}")
    if S < 1:
        raise ValueError(f"{op_name}: k_pages must be [P, S, G, D] with S >= 1, got {shape}")
    if kv_layout == "tiled" and (S % 16 or D % 2):
        raise ValueError(
            f"{op_name}: k_pages must be [P, S, G, D] with S a multiple of 16 and D even in the tiled layout, got {shape}"
        )


def cases() -> Iterator[Case]:
    """Every dtype, one and several tiles a page."""
    for P, S, G, D, dtype in [
        (2, 32, 3, 10, torch.bfloat16), (3, 16, 1, 64, torch.float16), (2, 48, 2, 6, torch.float32), (0, 16, 2, 8, torch.float32),
        (2, 32, 2, 10, torch.int8),
    ]:  # fmt: skip
        g = torch.Generator().manual_seed(P + S)
        k, v = (torch.randn(2, P, S, G, D, generator=g) * 40).to(dtype)
        for inverse in (False, True):
            yield Case(f"P{P}-S{S}-G{G}-D{D}-{dtype}-{inverse}", (k, v), {"inverse": inverse})


def cost(sizes: dict[str, int], k_pages: Tensor, v_pages: Tensor, *, inverse: bool = False) -> Cost:
    """Both read and written once."""
    return Cost(bytes=4 * k_pages.numel() * k_pages.element_size(), flops=0)


def _check(sizes: dict[str, int], k_pages: Tensor, v_pages: Tensor, *, inverse: bool = False) -> None:
    check_layout("tile_kv", sizes, "tiled")


@op(CONTRACT, cases=cases, cost=cost, check=_check)
def tile_kv(k_pages: Tensor, v_pages: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    P, S, G, D = k_pages.shape
    results = []
    for pages, index in zip((k_pages, v_pages), tiled_index(S, G, D, k_pages.dtype), strict=True):
        flat, index = pages.reshape(P, S * G * D), index.flatten().to(pages.device)
        if inverse:
            results.append(flat[:, index].reshape(P, S, G, D))
        else:
            results.append(torch.empty_like(flat).index_copy_(1, index, flat).reshape(P, S, G, D))
    return results[0], results[1]
