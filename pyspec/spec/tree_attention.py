# SPDX-License-Identifier: Apache-2.0
"""tree_attention: a ragged batch of token trees, chains and single tokens attends to a paged KV cache.

    request b has L = kv_len[b] committed tokens in logical slots 0 .. L-1 and the nodes i = 0 .. n-1 (cu_t[b] .. cu_t[b+1])
    node i's KV is already in logical slot L + i; its position is L + depth(i)
    it sees the committed tokens, its ancestors and itself; with a window, only positions > position - window
    s = scale * (q . k);  s = softcap * tanh(s / softcap) if softcap > 0
    out = sum softmax(s) v;  lse = log(sum exp(s)), natural
    pages of f8|i8: k = page * k_scale and v = page * v_scale, a scale for every slot and KV head
    sinks: every row of head h also has a score sinks[h], without a value: it joins the softmax's denominator and lse

T nodes, H = G * R query heads over G KV heads (head h reads KV head h // R), D head dim, B requests, P pages of S slots, W columns of
the page table. `parents` is local to a request: -1 for node 0, parents[i] < i (-1, 0, 1, ... is a chain: plain decode, a prefill
chunk, a draft chain; at most 1024 nodes otherwise). `kv_layout`: see tile_kv.

Guarantees of the kernels: a row's bits depend on that row's query and the keys it sees alone: not on other nodes, requests, the
page size or placement, the layout, how a prefill is cut into chunks, threads; a node of a tree equals the same node in a chain and in
plain decode (on GPUs the nodes of a tree that is no chain up to the rounding of the tensor cores' sums: siblings take slots between
ancestors). What a row does not see is never read into it, even NaN. T = 0 gives empty results. With pages of bf16|i8 the CPU kernels
round queries and softmax weights to bf16 (sums are f32); with f32|f16 pages they round neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyspec.contract import DTYPE_NAMES, DTYPES, Case, Cost, op
from pyspec.spec.tile_kv import check_layout, tile_kv

CONTRACT = """
q            [T, H, D]      f32|bf16|f16
k_pages      [P, S, G, D]   f32|bf16|f16|f8|i8
v_pages      [P, S, G, D]   like k_pages
page_table   [B, W]         i32
kv_len       [B]            i32
cu_t         [B+1]          i32
parents      [T]            i32
k_scale?     [P, S, G]      f32
v_scale?     [P, S, G]      f32
sinks?       [H]            f32
*
scale        float
window       int = 0
softcap      float = 0.0
kv_layout    str = "paged"
-> out       [T, H, D]      like q
-> lse       [T, H]         f32
"""
MAX_TREE = 1024
FLOAT8 = torch.float8_e4m3fn
QUANTISED = {FLOAT8: 448.0, torch.int8: 127.0}  # page types with scales, and their largest value
CUDA_HEAD_DIMS = (64, 96, 128, 256)


def ancestor_words(parents: list[int]) -> Tensor:
    """Bit j of row i says whether node j is node i or its ancestor: [n, ceil(n/32)] i64, 32 bits a word."""
    masks: list[int] = []
    for i, parent in enumerate(parents):
        masks.append((masks[parent] if parent >= 0 else 0) | 1 << i)
    words = (len(parents) + 31) // 32
    packed = bytearray(b"".join(mask.to_bytes(words * 4, "little") for mask in masks))
    return torch.frombuffer(packed, dtype=torch.int32).view(-1, words).long() & 0xFFFFFFFF


def depths(parents: list[int]) -> list[int]:
    """Depth of every node: 0 for the root."""
    result: list[int] = []
    for parent in parents:
        result.append(result[parent] + 1 if parent >= 0 else 0)
    return result


def visible(kv_len: int, parents: list[int], window: int) -> Tensor:
    """Which logical slots every node sees: [n, kv_len + n] bool."""
    n = len(parents)
    if parents == list(range(-1, n - 1)):
        tree = torch.ones(n, n).tril().bool()
    else:
        j = torch.arange(n)
        tree = (ancestor_words(parents)[:, j // 32] >> (j % 32) & 1).bool()
    seen = torch.cat([torch.ones(n, kv_len, dtype=torch.bool), tree], 1)
    if window:
        depth = torch.tensor(depths(parents))
        positions = kv_len + depth
        seen &= torch.cat([torch.arange(kv_len), positions]) > positions[:, None] - window
    return seen


def _page_counts(S: int, kv_len: int, nodes: int, window: int) -> tuple[int, int]:
    """Columns [first, end) of the page table that a request with nodes uses."""
    first = max(0, kv_len - window + 1) if window else 0
    return first // S, -(-(kv_len + nodes) // S)


def cases() -> Iterator[Case]:
    """Mixed batches of plain decode, chains and trees; every dtype, both layouts, odd page sizes, windows, soft cap, sinks."""
    chain = lambda n: list(range(-1, n - 1))
    tree = [-1, 0, 0, 1, 1, 2, 5, 0]
    table: list[tuple[Any, ...]] = [
        ("mixed", 6, 2, 32, 5, "f32", "f32", [(7, tree), (0, chain(3)), (40, chain(1))], {}),
        ("tiled", 9, 3, 64, 16, "bf16", "bf16", [(300, tree), (5, chain(20)), (255, chain(1))], {"kv_layout": "tiled"}),
        ("float16", 4, 4, 80, 48, "f16", "f16", [(33, chain(1)), (100, [-1, 0, 0, 0])], {"kv_layout": "tiled"}),
        ("window", 8, 1, 128, 3, "f32", "bf16", [(70, tree), (20, chain(17))], {"window": 19}),
        ("softcap", 4, 2, 256, 16, "f32", "f32", [(50, tree)], {"softcap": 20.0, "kv_layout": "tiled"}),
        ("sinks", 6, 2, 64, 5, "bf16", "bf16", [(9, tree), (70, chain(1))], {"sinks": True, "window": 30}),
        ("float8", 4, 2, 64, 16, "f32", "f8", [(30, tree), (5, chain(3))], {}),
        ("int8", 6, 2, 128, 3, "bf16", "i8", [(20, chain(4)), (1, tree)], {"softcap": 30.0}),
        ("int8-tiled", 6, 2, 80, 32, "f32", "i8", [(300, tree), (5, chain(20)), (255, chain(1))], {"kv_layout": "tiled"}),
        ("prefill", 3, 1, 16, 1, "bf16", "bf16", [(0, chain(70))], {}),
        ("empty", 2, 1, 48, 4, "f32", "f16", [(9, []), (3, [])], {}),
        ("nobody", 2, 1, 48, 4, "f32", "f16", [], {}),
    ]  # fmt: skip
    for name, H, G, D, S, q_dtype, dtype, requests, options in table:
        yield make_case(name, H, G, D, S, q_dtype, dtype, requests, **options)


def make_case(
    name: str, H: int, G: int, D: int, S: int, q_dtype: str, dtype: str, requests: list[tuple[int, list[int]]],
    *, seed: int = 0, sinks: bool = False, **options: Any,
) -> Case:  # fmt: skip
    """A call over requests of (kv_len, parents), pages in random order, one spare page."""
    g = torch.Generator().manual_seed(seed)
    needed = [-(-(L + len(parents)) // S) for L, parents in requests]
    P, W, T = sum(needed) + 1, max([0, *needed]) + 1, sum(len(parents) for _, parents in requests)
    order = torch.randperm(P, generator=g).int()
    page_table = torch.full((len(requests), W), -1, dtype=torch.int32)  # -1: not used
    for b, count in enumerate(needed):
        page_table[b, :count] = order[sum(needed[:b]) : sum(needed[: b + 1])]
    q = torch.randn(T, H, D, generator=g).to(DTYPES[q_dtype])
    k_pages, v_pages = torch.randn(2, P, S, G, D, generator=g)
    k_scale = v_scale = None
    if DTYPES[dtype] in QUANTISED:
        (k_pages, k_scale), (v_pages, v_scale) = (_quantised(x, DTYPES[dtype]) for x in (k_pages, v_pages))
    else:
        k_pages, v_pages = k_pages.to(DTYPES[dtype]), v_pages.to(DTYPES[dtype])
    if options.get("kv_layout") == "tiled":
        k_pages, v_pages = tile_kv.reference(k_pages, v_pages)
    kv_len = torch.tensor([L for L, _ in requests], dtype=torch.int32)
    cu_t = torch.tensor([0, *(len(parents) for _, parents in requests)]).cumsum(0).int()
    parents = torch.tensor([p for _, parents in requests for p in parents], dtype=torch.int32)
    sink = torch.randn(H, generator=g) if sinks else None
    args = (q, k_pages, v_pages, page_table, kv_len, cu_t, parents, k_scale, v_scale, sink)
    return Case(name, args, {"scale": 1.0 / math.sqrt(D), **options})


def _quantised(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Pages of f8 or i8 and their scales, as append_kv makes them."""
    scale = x.abs().amax(-1) / QUANTISED[dtype]
    y = x / scale[..., None]
    return (y.round() if dtype == torch.int8 else y).to(dtype), scale


def cost(
    sizes: dict[str, int], q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor,
    cu_t: Tensor, parents: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, sinks: Tensor | None,
    *, scale: float, window: int = 0, softcap: float = 0.0, kv_layout: str = "paged",
) -> Cost:  # fmt: skip
    """K and V (and scales) of every visible slot read once a request, q read and out written; 4 D operations a (row, visible key)."""
    slots = pairs = 0
    bounds, all_parents = cu_t.tolist(), parents.tolist()
    for b, L in enumerate(kv_len.tolist()):
        local = all_parents[bounds[b] : bounds[b + 1]]
        if local:
            slots += len(local) + (min(L, window - 1) if window else L)
            pairs += sum(min(L + d + 1, window or L + d + 1) for d in depths(local))
    row_bytes = sizes["D"] * k_pages.element_size() + (4 if k_scale is not None else 0)
    kv_bytes = 2 * slots * sizes["G"] * row_bytes
    return Cost(
        bytes=kv_bytes + 2 * q.numel() * q.element_size() + 4 * sizes["T"] * sizes["H"],
        flops=4 * pairs * sizes["H"] * sizes["D"],
    )


def _check(
    sizes: dict[str, int], q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor,
    cu_t: Tensor, parents: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, sinks: Tensor | None,
    *, scale: float, window: int = 0, softcap: float = 0.0, kv_layout: str = "paged",
) -> None:  # fmt: skip
    def require(ok: bool, argument: str, rule: str, got: object) -> None:
        if not ok:
            raise ValueError(f"tree_attention: {argument} must be {rule}, got {got}")

    check_layout("tree_attention", sizes, kv_layout)
    T, H, B, W, S, P, G = (sizes[letter] for letter in "THBWSPG")
    require(G > 0 and H % G == 0, "q", f"[T, H, D] with H a multiple of G={G}", list(q.shape))
    require(0 < scale < math.inf, "scale", "finite and > 0", f"{scale:g}")
    require(window >= 0, "window", ">= 0", window)
    require(0 <= softcap < math.inf, "softcap", "finite and >= 0", f"{softcap:g}")
    quantised = k_pages.dtype in QUANTISED
    for name, tensor in (("k_scale", k_scale), ("v_scale", v_scale)):
        got = "None" if tensor is None else list(tensor.shape)
        require((tensor is not None) == quantised, name, "given exactly when pages are f8|i8", got)
    rule = "paged when pages are f8"
    require(k_pages.dtype != FLOAT8 or kv_layout == "paged", "kv_layout", rule, kv_layout)
    bounds, lengths, all_parents, table = (x.tolist() for x in (cu_t, kv_len, parents, page_table))
    require(bounds[0] == 0, "cu_t", "0 at index 0", bounds[0])
    for b in range(B):
        where = f"at least {bounds[b]} (cu_t never decreases) at index {b + 1}"
        require(bounds[b + 1] >= bounds[b], "cu_t", where, bounds[b + 1])
    require(bounds[B] == T, "cu_t", f"T={T} at index {B}", bounds[B])
    for b, L in enumerate(lengths):
        local, t0 = all_parents[bounds[b] : bounds[b + 1]], bounds[b]
        nodes = len(local)
        require(L >= 0, "kv_len", f">= 0 at index {b}", L)
        for i, parent in enumerate(local):
            where = f"at index {t0 + i} (node {i} of request {b})"
            if i == 0:
                require(parent == -1, "parents", f"-1 {where}", parent)
            else:
                require(0 <= parent < i, "parents", f"in [0, {i}) {where}", parent)
        if nodes > MAX_TREE and local != list(range(-1, nodes - 1)):
            require(
                False,
                "parents",
                f"at most {MAX_TREE} nodes a request unless it is a chain",
                f"{nodes} in request {b}",
            )
        if nodes:
            first, end = _page_counts(S, L, nodes, window)
            require(
                end <= W,
                "page_table",
                f"[B, W] with W >= {end} for {L + nodes} slots of request {b}",
                f"W={W}",
            )
            for w in range(first, end):
                require(0 <= table[b][w] < P, "page_table", f"in [0, P={P}) at index [{b}, {w}]", table[b][w])


def cpu_limit(sizes: dict[str, int], *args: Tensor | None, **kwargs: object) -> str | None:
    """Why the CPU kernel cannot run a call, or None."""
    D, k_pages, sinks = sizes["D"], args[1], args[9]
    assert k_pages is not None
    if k_pages.dtype == FLOAT8:
        return f"k_pages must be f32|bf16|f16|i8, got {DTYPE_NAMES[k_pages.dtype]}"
    if sinks is not None:
        return f"sinks must be None, got {list(sinks.shape)}"
    return None if D % 16 == 0 and 16 <= D <= 256 else f"D must be a multiple of 16 up to 256, got {D}"


def cuda_limit(
    sizes: dict[str, int], *args: Tensor | None, kv_layout: str = "paged", **kwargs: object
) -> str | None:
    """Why the CUDA kernel cannot run a call, or None."""
    D, P, S, k_pages = sizes["D"], sizes["P"], sizes["S"], args[1]
    assert k_pages is not None
    if D not in CUDA_HEAD_DIMS:
        return f"D must be one of {list(CUDA_HEAD_DIMS)}, got {D}"
    if k_pages.dtype == torch.float32:
        return "k_pages must be bf16|f16|f8|i8 (tensor cores take 16 bits), got f32"
    if S > 256 or P > 1 << 23:
        return f"pages must be at most 2^23 of at most 256 slots, got {P} of {S}"
    return None if kv_layout == "paged" else f"kv_layout must be paged, got {kv_layout}"


@op(CONTRACT, cases=cases, cost=cost, check=_check, limits={"cpu": cpu_limit, "cuda": cuda_limit})
def tree_attention(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, page_table: Tensor, kv_len: Tensor, cu_t: Tensor, parents: Tensor,
    k_scale: Tensor | None = None, v_scale: Tensor | None = None, sinks: Tensor | None = None,
    *, scale: float, window: int = 0, softcap: float = 0.0, kv_layout: str = "paged",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if kv_layout == "tiled":
        k_pages, v_pages = tile_kv.reference(k_pages, v_pages, inverse=True)
    (_, S, G, _), (T, H, _) = k_pages.shape, q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    out, lse = torch.empty_like(q), torch.empty(T, H, dtype=wide, device=q.device)
    bounds, all_parents = cu_t.tolist(), parents.tolist()
    for b, L in enumerate(kv_len.tolist()):
        rows = slice(bounds[b], bounds[b + 1])
        local = all_parents[rows]
        if not local:
            continue
        first = _page_counts(S, L, len(local), window)[0] * S
        slots = torch.arange(first, L + len(local), device=q.device)
        pages, offsets = page_table[b, slots // S].long(), slots % S
        k, v = (
            _values(kv, kv_scale, pages, offsets, wide).repeat_interleave(H // G, 1)
            for kv, kv_scale in ((k_pages, k_scale), (v_pages, v_scale))
        )
        s = torch.einsum("thd,shd->ths", q[rows].to(wide), k) * scale
        if softcap:
            s = softcap * torch.tanh(s / softcap)
        seen = visible(L, local, window)[:, first:].to(q.device)
        s = s.masked_fill(~seen[:, None], -math.inf)
        if sinks is not None:
            s = torch.cat([s, sinks.to(wide).expand(len(local), H)[..., None]], -1)
        lse[rows] = torch.logsumexp(s, -1)
        out[rows] = torch.einsum("ths,shd->thd", s.softmax(-1)[..., : len(slots)], v).to(q.dtype)
    return out, lse


def _values(x: Tensor, scale: Tensor | None, page: Tensor, slot: Tensor, wide: torch.dtype) -> Tensor:
    """K or V of slots [s, G, D]."""
    return x[page, slot].to(wide) * (1 if scale is None else scale[page, slot].to(wide)[..., None])
