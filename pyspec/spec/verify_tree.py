# SPDX-License-Identifier: Apache-2.0
"""verify_tree: walks each request's token tree with the tokens that plain decoding would emit.

    c = root; loop: y = pick(logits[c], position[b] + depth(c) + 1); emit y; if y is a child's token: c = that child, else stop

`pick` is that of `sample` (pyspec/spec/pipeline.py). The tree cannot change what is emitted: every token is a function of
its row, the request's parameters and its absolute position alone (shared-noise walk; greedy matching at temperature 0), so a
tree of one node is `sample`, and plain decoding is a chain of such trees.

B requests, T nodes of all trees, V vocabulary, E = max_path, N = num_logprobs. Request b's nodes are cu_t[b] .. cu_t[b+1];
`parents` are local to the request, parents[0] = -1 (the root: the last emitted token, at position[b]), parents[i] < i.

Outputs: path [B, E] local indices of the accepted nodes, root first; path_len [B]; emitted [B, E] the token picked at each
node of the path: emitted[b, path_len[b] - 1] is the new token beyond the tree and the next root; logprobs and the N
most likely tokens of each such row, all as `sample` gives them (of `logits`; 0 without with_logprobs; NaN where there is no
law). Integers beyond path_len are -1, logprobs 0. A request without nodes has path_len 0.
Siblings with equal tokens: the first by index is walked. Rows of nodes that are not walked change nothing, whatever they hold;
the CPU's kernel does not read them, those of GPUs may pick at all nodes at once.
Errors: ValueError for what `sample` refuses, tokens outside [0, V), cu_t not rising from 0 to T, parents that break the
rule above, max_path below the nodes of the longest path.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec import pipeline
from pyspec.spec.sample import laws

CONTRACT = """
logits       [T, V]  f32
tokens       [T]     i32
parents      [T]     i32
cu_t         [B+1]   i32
position     [B]     i32    # of the root
temperature  [B]     f32
top_k        [B]     i32
top_p        [B]     f32
min_p        [B]     f32
typical_p    [B]     f32
seed         [B]     i64
stream       [B]     i32
edited?      [T, V]  f32    # the rows to pick from where they are not `logits`
*
max_path     int
num_logprobs int = 0
with_logprobs bool = True
-> path          [B, max_path]                i32
-> path_len      [B]                          i32
-> emitted       [B, max_path]                i32
-> logprobs      [B, max_path]                f32
-> top_tokens    [B, max_path, num_logprobs]  i32
-> top_logprobs  [B, max_path, num_logprobs]  f32
"""


def cases() -> Iterator[Case]:
    """Trees of ragged sizes, one of them empty, one a chain of one node; the last ones with typical-p and edited rows."""
    for sizes, v, n, typical in [
        ((3, 2), 11, 4, False),
        ((1,), 1, 1, False),
        ((), 5, 0, False),
        ((7, 0, 1, 20), 3, 2, False),
        ((16, 1), 49152, 3, False),
        ((7, 0, 1, 20), 3, 2, True),
        ((16, 1), 49152, 3, True),
    ]:
        g = torch.Generator().manual_seed(len(sizes) * 10007 + v)
        t, b = sum(sizes), len(sizes)
        logits, tokens = (
            2 * torch.randn(t, v, generator=g),
            torch.randint(0, v, (t,), generator=g, dtype=torch.int32),
        )
        parents = [
            int(torch.randint(0, i, (), generator=g)) if i else -1 for size in sizes for i in range(size)
        ]
        cu_t = torch.tensor([0, *sizes]).cumsum(0).int()
        position = torch.randint(0, 4096, (b,), generator=g, dtype=torch.int32)
        law = laws(b, v, g, typical=typical)
        edited = logits + torch.randn(t, v, generator=g) if typical else None
        args = (logits, tokens, torch.tensor(parents, dtype=torch.int32), cu_t, position, *law, edited)
        name = f"B{b}-T{t}-V{v}-N{n}{'-edited' if typical else ''}"
        yield Case(name, args, {"max_path": max(sizes, default=0), "num_logprobs": n})


def cost(sizes: dict[str, int], *args: Tensor, **kwargs: int) -> Cost:
    """At least the root's row of each request."""
    b, v = sizes["B"], sizes["V"]
    return Cost(bytes=4 * b * v, flops=30 * b * v)


def check(
    sizes: dict[str, int],
    logits: Tensor,
    tokens: Tensor,
    parents: Tensor,
    cu_t: Tensor,
    position: Tensor,
    *args: Tensor,
    max_path: int,
    num_logprobs: int = 0,
    with_logprobs: bool = True,
) -> None:
    rows, vocab = sizes["T"], sizes["V"]
    where = "position", position
    pipeline.check_law("verify_tree", vocab, where, args[:5], num_logprobs, with_logprobs)
    check_trees("verify_tree", vocab, rows, tokens, parents, cu_t, max_path)


def check_trees(
    op: str, vocab: int, rows: int, tokens: Tensor, parents: Tensor, cu_t: Tensor, max_path: int
) -> None:
    """Raise ValueError unless tokens, parents [rows] and cu_t [B+1] are trees with paths of at most max_path nodes."""
    pipeline.check_values(op, "tokens", f"in [0, {vocab})", tokens, (tokens >= 0) & (tokens < vocab))
    pipeline.check_offsets(op, cu_t, rows)
    offsets, parent, longest = cu_t.tolist(), parents.tolist(), 0
    for begin, end in zip(offsets, offsets[1:], strict=False):
        nodes: list[int] = []  # nodes on the path to each node, itself included
        for i in range(begin, end):
            local = i - begin
            rule = f"in [0, {local})" if local else "-1"
            if not (0 <= parent[i] < local if local else parent[i] == -1):
                raise ValueError(f"{op}: parents[{i}] must be {rule}, got {parent[i]}")
            nodes.append(1 + (nodes[parent[i]] if local else 0))
        longest = max([longest, *nodes])
    if max_path < longest:
        raise ValueError(f"{op}: max_path must be >= {longest} (nodes of the longest path), got {max_path}")


@op(CONTRACT, check=check, cases=cases, cost=cost)
def verify_tree(
    logits: Tensor,
    tokens: Tensor,
    parents: Tensor,
    cu_t: Tensor,
    position: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    typical_p: Tensor,
    seed: Tensor,
    stream: Tensor,
    edited: Tensor | None = None,
    *,
    max_path: int,
    num_logprobs: int = 0,
    with_logprobs: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch = position.numel()
    path, emitted = position.new_full((2, batch, max_path), -1).unbind()
    path_len = position.new_zeros(batch)
    logprobs = logits.new_zeros(batch, max_path)
    top_tokens = position.new_full((batch, max_path, num_logprobs), -1)
    top_logprobs = logits.new_zeros(batch, max_path, num_logprobs)
    offsets, token, parent = cu_t.tolist(), tokens.tolist(), parents.tolist()
    for b, law in enumerate(pipeline.laws(temperature, top_k, top_p, min_p, typical_p, seed, stream)):
        begin, end = offsets[b], offsets[b + 1]
        node: int | None = begin if begin < end else None
        depth = 0
        while node is not None:
            row = None if edited is None else edited[node]
            place = int(position[b]) + depth + 1
            picked = pipeline.pick(logits[node], place, law, num_logprobs, row, with_logprobs)
            path[b, depth] = node - begin
            emitted[b, depth], logprobs[b, depth], top_tokens[b, depth], top_logprobs[b, depth] = picked
            depth += 1
            children = (i for i in range(node + 1, end) if parent[i] == node - begin)
            node = next((i for i in children if token[i] == picked.token), None)
        path_len[b] = depth
    return path, path_len, emitted, logprobs, top_tokens, top_logprobs
