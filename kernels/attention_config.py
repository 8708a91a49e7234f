# SPDX-License-Identifier: Apache-2.0
"""tree_attention in Triton: how one call is cut into programs. A pure function of sizes and types."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import triton

SPAN = 512  # slots; also the least that a program of its own is worth
PROGRAMS = 264  # two for each SM of a large GPU, which holds one (D above 64) to three of them
MAX_WORKSPACE = 256 << 20  # bytes of stored spans; calls that would need more are not split and share nothing


@dataclass(frozen=True)
class Config:
    """How one call is cut. All that fixes the order of sums follows from D and the types alone."""

    span: int
    block_m: int
    block_n: int
    num_warps: int
    tiles: int  # row tiles of all requests, at most
    spans: int  # of a request, at most
    parts: int  # programs that share the spans of a row tile
    shared_programs: int = 0  # of a KV head, for spans that several requests share; 0: nobody looks for these

    @property
    def stores(self) -> bool:
        """Whether the state of every span is stored, for a second launch to fold."""
        return self.parts > 1 or self.shared_programs > 0

    @property
    def programs(self) -> int:
        """Of a KV head."""
        return self.shared_programs + self.tiles * self.parts

    @property
    def options(self) -> dict[str, Any]:
        """The compiler's: with stored spans of a small head ptxas would spill to fit a third block."""
        return {"enable_fp_fusion": False} | ({"maxnreg": 255} if self.stores and self.num_warps == 4 else {})


def is_split(q: torch.dtype, pages: torch.dtype) -> bool:
    """Whether queries (and weights) enter as two parts of the 16 bits that keys have."""
    return q == torch.float32 or (q == torch.float16 and pages != torch.float16)


def pick_config(
    T: int, H: int, G: int, D: int, B: int, slots: int, q: torch.dtype = torch.bfloat16,
    pages: torch.dtype = torch.bfloat16, window: int = 0,
) -> Config:  # fmt: skip
    """The cut for T nodes of B requests whose page tables have room for `slots` slots each.

    Shared prefixes are looked for where a tile has room for the rows of two requests or more, on average, and there is
    no window. Then programs that would stand idle share the spans of the groups' row tiles, of which there may be
    (T R + groups (BLOCK_M - 1)) / BLOCK_M, with two requests in a group at least.
    """
    heads = H // G
    width = D * (2 if is_split(q, pages) else 1) // pages.itemsize  # 8-bit keys are held twice
    block_m = 64 if width <= 128 else 32 if width <= 256 else 16  # what registers hold
    tiles = min(T * heads, (T * heads + B * (block_m - 1)) // block_m)  # one more a request than whole tiles
    spans = max(1, triton.cdiv(slots, SPAN))
    parts = min(spans, max(1, PROGRAMS // max(1, tiles * G)))
    fits = 4 * spans * T * H * (D + 2) <= MAX_WORKSPACE
    config = Config(SPAN, block_m, 32, 8 if D > 64 else 4, tiles, spans, parts if fits else 1)
    if not fits or B < 2 or window or spans < 2 or T * heads > B * block_m // 2:
        return config
    shared_tiles = (T * heads + B // 2 * (block_m - 1)) // block_m
    return replace(config, shared_programs=max(shared_tiles, min(PROGRAMS // G, shared_tiles * spans)))
