# SPDX-License-Identifier: Apache-2.0
"""tree_attention on 9/3 heads of 64 in bf16: plain decode, trees and a prefill, both layouts, against torch's attention.
Then its growth with context and nodes, also with int8 pages, where the cache lies outside the caches as in a model's step.

The peer is scaled_dot_product_attention over contiguous K and V of one request with the tree as a mask: it is spared pages, raggedness
and a fixed order of sums. Checked against the specification, and chains against plain decode, before anything is timed.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator

import torch

from pyspec import ops, spec
from pyspec.backends import native
from pyspec.contract import Case
from pyspec.engine import huge_pages
from pyspec.spec.tree_attention import cost, make_case, visible

from .harness import GateError, Options, Row, make_row, measure, peaks

HEADS, KV_HEADS, HEAD_DIM, PAGE = 9, 3, 64, 16
OUTSIDE = 128 << 20  # bytes of layers that are read in turn: none is in a cache when it is read again
CONTEXTS, NODES = (512, 2048, 8192, 32768), (1, 4, 16, 64, 256)


def rows(options: Options) -> Iterator[Row]:
    """Rows of us per call; GateError if a result is wrong."""
    contexts, nodes = ((64, 2048), (1, 8)) if options.quick else ((64, 2048, 8192), (1, 8, 16, 64))
    shapes = [(f"L{L}-q{n}", L, tree(n)) for L in contexts for n in nodes]
    shapes.append(("prefill-512", 0, list(range(-1, 511))))
    backend = f"cpu-{native.cpu_isa()}" if native else "spec"
    for name, L, parents in shapes:
        cases = {
            layout: make_case(
                name, HEADS, KV_HEADS, HEAD_DIM, PAGE, "f32", "bf16", [(L, parents)], kv_layout=layout
            )
            for layout in ("tiled", "paged")
        }
        for case in cases.values():
            check(case)
        candidates = {layout: attention(case) for layout, case in cases.items()}
        candidates["torch"] = torch_attention(cases["paged"], L, parents)
        times = measure(candidates, seconds=0.05 if options.quick else 0.5)
        for layout, case in cases.items():
            floor = cost(spec.tree_attention.bind(case.args), *case.args, **case.kwargs)
            time, label = times[layout], f"{name}-{layout}"
            yield make_row("tree_attention", label, backend, "p20", time.p20 * 1e6, "us")
            yield make_row(
                "tree_attention", label, backend, "time", time.p50 * 1e6, "us",
                peak_pct=peaks().percent(floor.bytes, floor.flops, time.p50),
                peer="torch sdpa", ratio=time.p50 / times["torch"].p50,
            )  # fmt: skip
            yield make_row("tree_attention", label, backend, "p80", time.p80 * 1e6, "us")
    yield from growth(options, backend)


def growth(options: Options, backend: str) -> Iterator[Row]:
    """Time against context, with 1 and 16 nodes, and against nodes; tiled pages of bf16 and int8."""
    shapes = [(L, n) for n in (1, 16) for L in CONTEXTS] + [(2048, n) for n in NODES if n not in (1, 16)]
    for L, n in shapes[:2] if options.quick else shapes:
        cases = {
            dtype: make_case(
                f"growth-L{L}-q{n}-{dtype}", HEADS, KV_HEADS, HEAD_DIM, PAGE, "f32", dtype, [(L, tree(n))],
                kv_layout="tiled",
            )
            for dtype in ("bf16", "i8")
        }  # fmt: skip
        for case in cases.values():
            check(case)
        times = measure(
            {dtype: layers(case) for dtype, case in cases.items()}, seconds=0.05 if options.quick else 0.4
        )
        for dtype, case in cases.items():
            floor, time = cost(spec.tree_attention.bind(case.args), *case.args, **case.kwargs), times[dtype]
            yield make_row(
                "tree_attention", case.name, backend, "time", time.p50 * 1e6, "us",
                peak_pct=peaks().percent(floor.bytes, floor.flops, time.p50),
                peer="bf16 pages", ratio=time.p50 / times["bf16"].p50,
            )  # fmt: skip


def layers(case: Case) -> Callable[[], object]:
    """One call of the op on the next of many layers, whose pages lie as the engine's cache does."""
    q, k_pages, v_pages, *rest = case.args
    count = max(2, -(-OUTSIDE // (k_pages.nbytes + v_pages.nbytes)))
    keys, values = (huge_pages.zeros((count, *pages.shape), pages.dtype) for pages in (k_pages, v_pages))
    keys[:], values[:] = k_pages, v_pages
    turn = itertools.cycle(range(count))

    def call() -> object:
        i = next(turn)
        return ops.tree_attention(q, keys[i], values[i], *rest, **case.kwargs)

    return call


def attention(case: Case) -> Callable[[], object]:
    """One call of the op."""
    return lambda: ops.tree_attention(*case.args, **case.kwargs)


def tree(nodes: int) -> list[int]:
    """A random tree, each node's parent among the six before it."""
    r = random.Random(nodes)
    return [-1, *(r.randrange(max(0, i - 6), i) for i in range(1, nodes))]


def check(case: Case) -> None:
    """The result is near the specification's, and the last node of a chain equals plain decode, bit for bit, when compiled.

    Near for queries rounded to bf16, as the kernel and the peer do, up to weights rounded so: 2^-9 of the largest value.
    """
    out, lse = ops.tree_attention(*case.args, **case.kwargs)
    exact, exact_lse = spec.tree_attention.run(case.args[0].bfloat16().float(), *case.args[1:], **case.kwargs)
    values, scale = case.args[2].float(), case.args[8]
    largest = (values if scale is None else values * scale.max()).abs().max()
    limit = 2**-9 * float(largest) + 1e-4
    if not torch.allclose(out, exact, rtol=0, atol=limit) or not torch.allclose(lse, exact_lse, atol=1e-4):
        raise GateError(
            f"tree_attention: {case.name} must equal its specification, got {(out - exact).abs().max()}"
        )
    q, k_pages, v_pages, table, kv_len, cu_t, parents, *scales = case.args
    if native and parents.tolist() == list(range(-1, len(parents) - 1)):
        one = [
            q[-1:],
            k_pages,
            v_pages,
            table,
            kv_len + len(q) - 1,
            torch.tensor([0, 1], dtype=torch.int32),
            parents[:1],
            *scales,
        ]
        if not torch.equal(ops.tree_attention(*one, **case.kwargs)[0][0], out[-1]):
            raise GateError(
                f"tree_attention: {case.name} must equal plain decode bit for bit, got other bits"
            )


def torch_attention(case: Case, L: int, parents: list[int]) -> Callable[[], object]:
    """torch's attention over the same keys, contiguous [1, H, L + n, D], bf16 queries."""
    q, k_pages, v_pages, table = case.args[:4]
    slots = torch.arange(L + len(parents))
    keys, values = (
        pages[table[0, slots // PAGE].long(), slots % PAGE].transpose(0, 1)[None].contiguous()
        for pages in (k_pages, v_pages)
    )
    query, mask = q.transpose(0, 1)[None].bfloat16().contiguous(), visible(L, parents, 0)
    return lambda: torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, attn_mask=mask, enable_gqa=True
    )
