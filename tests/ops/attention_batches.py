# SPDX-License-Identifier: Apache-2.0
"""Requests of tree_attention by their logical keys and values, laid into pages in any way; every unwritten slot holds NaN."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyspec import spec
from pyspec.spec.append_kv import quantise_rows

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "i8": torch.int8}


@dataclass(frozen=True)
class Request:
    """Queries of n nodes [n, H, D]; K and V [L + n, G, D] of the committed tokens and the nodes; local parents [n].

    int8: K and V are f32 here, and int8 with scales in the cache.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    parents: list[int]
    int8: bool = False

    @property
    def kv_len(self) -> int:
        return len(self.k) - len(self.parents)

    def path(self, node: int) -> list[int]:
        nodes = [node]
        while self.parents[nodes[-1]] >= 0:
            nodes.append(self.parents[nodes[-1]])
        return nodes[::-1]

    def select(self, nodes: list[int], committed: int = 0) -> Request:
        """These nodes of one path as a chain, the first `committed` of them as committed tokens."""
        slots = [*range(self.kv_len), *(self.kv_len + i for i in nodes)]
        n = len(nodes) - committed
        return replace(self, q=self.q[nodes[committed:]], k=self.k[slots], v=self.v[slots], parents=chain(n))

    def reordered(self, order: list[int]) -> Request:
        """The same tree with node order[i] at place i (parents before children)."""
        place = {node: i for i, node in enumerate(order)}
        slots = [*range(self.kv_len), *(self.kv_len + i for i in order)]
        parents = [place[self.parents[i]] if self.parents[i] >= 0 else -1 for i in order]
        return replace(self, q=self.q[order], k=self.k[slots], v=self.v[slots], parents=parents)

    def with_nan(self, nodes: list[int]) -> Request:
        """NaN in everything of these nodes."""
        q, k, v = self.q.clone(), self.k.clone(), self.v.clone()
        for i in nodes:
            q[i] = k[self.kv_len + i] = v[self.kv_len + i] = float("nan")
        return replace(self, q=q, k=k, v=v)


def chain(n: int) -> list[int]:
    return list(range(-1, n - 1))


def random_tree(n: int, seed: int, spread: int = 6) -> list[int]:
    """Parents among the `spread` nodes before: small values give deep trees."""
    r = random.Random(seed)
    return [-1, *(r.randrange(max(0, i - spread), i) for i in range(1, n))]


def make_request(
    L: int, parents: list[int], H: int = 6, G: int = 2, D: int = 32, dtype: str = "bf16", seed: int = 0
) -> Request:
    g = torch.Generator().manual_seed(seed * 7919 + L * 31 + len(parents))
    int8, n = dtype == "i8", len(parents)
    kind = torch.float32 if int8 else DTYPES[dtype]
    k, v = torch.randn(2, L + n, G, D, generator=g).to(kind)
    return Request(torch.randn(n, H, D, generator=g).to(kind) * 2, k, v, parents, int8)


def call_args(
    requests: list[Request], S: int = 16, layout: str = "paged", seed: int = 0
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of tree_attention: pages in random order, NaN in every slot that is not written (int8: in its scales)."""
    g = torch.Generator().manual_seed(seed)
    counts = [-(-len(request.k) // S) for request in requests]
    P, W = sum(counts) + 2, max(counts) + 1
    order = torch.randperm(P, generator=g).int()
    _, G, D = requests[0].k.shape
    int8, scales = requests[0].int8, (None, None)
    if int8:
        k_pages, v_pages = torch.full((2, P, S, G, D), 99, dtype=torch.int8)
        scales = tuple(torch.full((2, P, S, G), float("nan")))
    else:
        k_pages, v_pages = torch.full((2, P, S, G, D), float("nan")).to(requests[0].k.dtype)
    table = torch.full((len(requests), W), -1, dtype=torch.int32)
    for b, request in enumerate(requests):
        pages = order[sum(counts[:b]) : sum(counts[: b + 1])]
        table[b, : counts[b]] = pages
        slots = torch.arange(len(request.k))
        where = pages[slots // S].long(), slots % S
        for pages, scale, rows in zip((k_pages, v_pages), scales, (request.k, request.v), strict=True):
            if scale is None:
                pages[where] = rows
            else:
                pages[where], scale[where] = quantise_rows(rows, torch.int8)
    if layout == "tiled":
        k_pages, v_pages = spec.tile_kv.reference(k_pages, v_pages)
    kv_len = torch.tensor([request.kv_len for request in requests], dtype=torch.int32)
    cu_t = torch.tensor([0, *(len(request.parents) for request in requests)]).cumsum(0).int()
    parents = torch.tensor([p for request in requests for p in request.parents], dtype=torch.int32)
    q = torch.cat([request.q for request in requests])
    return [q, k_pages, v_pages, table, kv_len, cu_t, parents, *scales, None], {
        "scale": D**-0.5,
        "kv_layout": layout,
    }


def attend(
    requests: list[Request], S: int = 16, layout: str = "paged", seed: int = 0, **options: Any
) -> list[Tensor]:
    """Compiled attention; for every request its out and lse as one tensor [n, H, D + 1] f32."""
    args, kwargs = call_args(requests, S, layout, seed)
    out, lse = torch.ops.pyspec.tree_attention(*args, **{**kwargs, **options})
    both = torch.cat([out.float(), lse[..., None]], -1)
    return list(both.split([len(request.parents) for request in requests]))


def equal(a: Tensor, b: Tensor) -> bool:
    """The same bits, none of them NaN."""
    return torch.equal(a, b)  # NaN never equals itself
