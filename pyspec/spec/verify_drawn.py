# SPDX-License-Identifier: Apache-2.0
"""verify_drawn: verifies token trees by how their nodes were drawn, with fresh randomness: rejection.

Every node has `drawn`, its law given its parent and the siblings before it; q are the draft's weights of the
parent's row of draft_logits by softmax(logits / draft_temperature), see draw_children:

    0  deterministic         a point mass: chosen without randomness, given what was drawn before
    1  iid                   q
    2  without replacement   q without the tokens of earlier siblings and of the deterministic siblings

So the first child of a "hybrid" node has 2 and the others 0, and a chain has 1 or 2. Siblings are verified in
index order; those of one node are all iid, or none is, and their tokens differ unless they are iid.

With P and Q the weights (categorical.py) of the target's processed law and of the draft's law at a node,
float64:

    handed a:     alpha = a / sum P     rho = 0     A = a     m(y) = [alpha P(y) - rho Q(y)]+
                  (Q = 0 at the tokens of deterministic children)
    child x:      Phi = (1 - a) + A     s = Phi / Z,  Z = the sum of Q over what x is drawn from
                  x may be accepted with m(x) of s Q(x)     (deterministic: with m(x) of Phi)
    it failed:    rho += s     (deterministic: P(x) = 0)
                  A = sum of m over all other tokens, in lanes, then + m(x) of the deterministic children that
                  have not failed, last to first
    all failed:   the node may be accepted with A of Phi = (1 - a) + A, and the token after it is drawn by m

    "top_down"    every node is handed 1; a child is accepted at once where u(child) s Q(x) < m(x)
    "traversal"   a child is handed c = min(1, m(x) / (s Q(x))), 0 below 2^-126; of all nodes, children before
                  their parent, the first with u(node) Phi < A ends the path; the root does where none has
    "target"      y is drawn by P at each node; to its first child with that token, else stop (Q and drawn are
                  not used)

The token after the path is drawn by m. u(node) is the number of (seed, stream, step, node, ACCEPT) of
noise.py, a token is drawn with that of (seed, stream, step, node, EXTRA): no two steps use the same. What is
emitted follows the target's law exactly if each node was drawn as `drawn` says and none was removed
afterwards; "target" is exact for any tree. On a chain "traversal" is block verification.

What only rounding or a wrong caller makes: A = 0 after a failure at a = 1 leaves the node's state as it was;
a child that its own law cannot give (Q(x) = 0) is refused and changes nothing; a = 0 refuses the whole
subtree. Below a node whose row has no law no child is looked at, and its token is 0 with logprob NaN, as in
`sample`; below one without a draft row no drawn child is accepted.

B requests, T nodes of all trees, V vocabulary, R rows of the draft. Trees, parameters, `edited` and the
outputs are those of verify_tree, with `step` in the place of the position; the token after the path is the
last in `emitted`, and logprobs are those of `logits`. Every backend gives the same bits; requests are
independent; rows that the walk does not need change nothing.

Errors: ValueError for what verify_tree refuses, step < 0, drawn outside 0, 1, 2, draft_row outside [-1, R),
draft_temperature not finite or < 0, an unknown walk; and, but for "target", mixed or equal siblings as said
above and a drawn child below a node without draft row. Sources: SpecInfer (arXiv 2305.09781), Sequoia
(2402.12374), block verification (2403.10444), traversal verification (2505.12398).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec import pipeline
from pyspec.spec.categorical import law_weights, plain_weights
from pyspec.spec.draw_children import draw_children
from pyspec.spec.rejection import DETERMINISTIC, IID, WALKS, WITHOUT_REPLACEMENT, KeyedRandom, Tree, verify
from pyspec.spec.sample import laws
from pyspec.spec.verify_tree import check_trees

CONTRACT = """
logits            [T, V]  f32
tokens            [T]     i32
parents           [T]     i32
cu_t              [B+1]   i32
drawn             [T]     i32    # how the node was drawn; not used at roots
draft_logits      [R, V]  f32
draft_row         [T]     i32    # that the node's children were drawn from; -1: none
draft_temperature [B]     f32
step              [B]     i32    # of the request
temperature       [B]     f32
top_k             [B]     i32
top_p             [B]     f32
min_p             [B]     f32
typical_p         [B]     f32
seed              [B]     i64
stream            [B]     i32
edited?           [T, V]  f32    # the rows of the target's law where they are not `logits`
*
walk         str = "traversal"
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
    """Trees drawn by every rule and walked in every way; ragged sizes, one request without nodes, filters and edited rows."""
    for shapes, v, n, rule, walk in [
        (((2, 1), (3,)), 11, 4, "without_replacement", "traversal"),
        (((),), 1, 1, "iid", "top_down"),
        ((), 5, 0, "iid", "traversal"),
        (((2, 2), None, (), (1, 1, 1)), 5, 2, "hybrid", "traversal"),
        (((3, 2), (1, 1, 1, 1)), 37, 2, "iid", "top_down"),
        (((4, 1), (2, 2, 1)), 130, 0, "deterministic", "traversal"),
        (((3, 1),), 40, 3, "hybrid", "target"),
        (((3, 2), (1, 1, 1)), 4097, 2, "hybrid", "top_down"),
        (((2, 2, 1), (1, 1)), 49152, 3, "without_replacement", "traversal"),
    ]:
        yield example(shapes, v, n, rule, walk, len(shapes) * 10007 + v)


def example(
    shapes: Sequence[tuple[int, ...] | None], vocab: int, num_logprobs: int, rule: str, walk: str, seed: int
) -> Case:
    """A call for trees of the given children per level (None: no tree at all) below drafts that resemble the target."""
    g = torch.Generator().manual_seed(seed)
    ints = lambda high, size: torch.randint(0, high, (size,), generator=g, dtype=torch.int32)
    b = len(shapes)
    temperature, *law = laws(b, vocab, g)
    draft_temperature, step = torch.tensor([1.0, 0.7])[torch.arange(b) % 2], ints(1000, b)
    tokens, parents, drawn, sizes = [], [], [], []
    rows: list[Tensor] = []  # draft rows, one of every node
    for r, shape in enumerate(shapes):
        nodes = [] if shape is None else [(0, -1, DETERMINISTIC)]
        level, first = range(len(nodes)), len(rows)
        rows += [2 * torch.randn(vocab, generator=g) for _ in nodes]
        for width in shape or ():
            new = len(nodes)
            for node in level:
                children = _children(
                    rows[first + node], width, rule, float(draft_temperature[r]), node, int(step[r])
                )
                nodes += [(token, node, kind) for token, kind in children]
            level = range(new, len(nodes))
            rows += [2 * torch.randn(vocab, generator=g) for _ in level]
        sizes.append(len(nodes))
        tokens += [node[0] for node in nodes]
        parents += [node[1] for node in nodes]
        drawn += [node[2] for node in nodes]
    t = len(rows)
    draft = torch.stack(rows) if t else torch.empty(0, vocab)
    logits = draft + torch.randn(t, vocab, generator=g)
    edited = [logits + torch.randn(t, vocab, generator=g)] if len(shapes) == 2 else []
    i32 = lambda values: torch.tensor(values, dtype=torch.int32)
    args = (
        logits, i32(tokens), i32(parents), i32([0, *sizes]).cumsum(0).int(), i32(drawn), draft, torch.arange(t).int(),
        draft_temperature, step, temperature, *law, *edited,
    )  # fmt: skip
    kwargs = {"walk": walk, "max_path": max(sizes, default=0), "num_logprobs": num_logprobs}
    return Case(f"B{b}-T{t}-V{vocab}-{rule}-{walk}", args, kwargs)


def _children(
    row: Tensor, width: int, rule: str, temperature: float, node: int, step: int
) -> list[tuple[int, int]]:
    """Token and kind of the children of one node."""
    if rule == "deterministic":
        return [(token, DETERMINISTIC) for token in row.topk(min(width, row.numel())).indices.tolist()]
    i32 = lambda value: torch.tensor([value], dtype=torch.int32)
    seed = torch.tensor([7])
    call = row[None], i32(width), torch.tensor([temperature]), seed, i32(0), i32(step), i32(node)
    token, _ = draw_children.reference(*call, width=width, rule=rule)
    found = [x for x in token[0].tolist() if x >= 0]
    return list(zip(found, kinds(rule, len(found)), strict=True))


def kinds(rule: str, count: int) -> list[int]:
    """`drawn` of the children of one node that draw_children has drawn by `rule`."""
    if (
        rule == "hybrid"
    ):  # where the sampled child is missing, the first of the others is all that it could have been
        return [WITHOUT_REPLACEMENT, *[DETERMINISTIC] * (count - 1)][:count]
    return [IID if rule == "iid" else WITHOUT_REPLACEMENT] * count


def cost(sizes: dict[str, int], *args: Tensor, **kwargs: int) -> Cost:
    """At least the rows of the target and the draft at the root of each request."""
    b, v = sizes["B"], sizes["V"]
    return Cost(bytes=8 * b * v, flops=60 * b * v)


def check(
    sizes: dict[str, int], logits: Tensor, tokens: Tensor, parents: Tensor, cu_t: Tensor, drawn: Tensor, draft_logits: Tensor,
    draft_row: Tensor, draft_temperature: Tensor, step: Tensor, *args: Tensor, walk: str = "traversal", max_path: int,
    num_logprobs: int = 0, with_logprobs: bool = True,
) -> None:  # fmt: skip
    op, vocab, rows = "verify_drawn", sizes["V"], sizes["R"]
    pipeline.check_law(op, vocab, ("step", step), args[:5], num_logprobs, with_logprobs)
    if walk not in WALKS:
        raise ValueError(f"{op}: walk must be {'|'.join(WALKS)}, got {walk}")
    check_trees(op, vocab, sizes["T"], tokens, parents, cu_t, max_path)
    ok = draft_temperature.isfinite() & (draft_temperature >= 0)
    pipeline.check_values(op, "draft_temperature", "finite and >= 0", draft_temperature, ok)
    pipeline.check_values(
        op, "draft_row", f"in [-1, {rows})", draft_row, (draft_row >= -1) & (draft_row < rows)
    )
    pipeline.check_values(op, "drawn", "in [0, 2]", drawn, (drawn >= 0) & (drawn <= 2))
    if walk != "target":
        _check_siblings(tokens.tolist(), parents.tolist(), cu_t.tolist(), drawn.tolist(), draft_row.tolist())


def _check_siblings(
    tokens: list[int], parents: list[int], cu_t: list[int], drawn: list[int], draft_row: list[int]
) -> None:
    """The rules between the children of one node."""
    first: dict[int, int] = {}  # parent -> whether its first child is iid
    seen: set[tuple[int, int]] = set()
    for begin, end in zip(cu_t, cu_t[1:], strict=False):
        for i in range(begin + 1, end):
            parent, kind = begin + parents[i], drawn[i]
            if kind != DETERMINISTIC and draft_row[parent] < 0:
                raise ValueError(
                    f"verify_drawn: draft_row[{parent}] must be >= 0 above drawn[{i}] = {kind}, got {draft_row[parent]}"
                )
            if first.setdefault(parent, kind == IID) != (kind == IID):
                raise ValueError(
                    f"verify_drawn: drawn[{i}] must be 1 for all children of a node or for none, got {kind}"
                )
            if kind != IID and (parent, tokens[i]) in seen:
                raise ValueError(
                    f"verify_drawn: tokens[{i}] must be different from those of its siblings, got {tokens[i]}"
                )
            seen.add((parent, tokens[i]))


def _target_weights(rows: Tensor, law: pipeline.Law, node: int) -> Tensor:
    return law_weights(rows[node], law)


def _draft_weights(draft_logits: Tensor, rows: list[int], temperature: float, node: int) -> Tensor | None:
    return plain_weights(draft_logits[rows[node]], temperature) if rows[node] >= 0 else None


@op(CONTRACT, check=check, cases=cases, cost=cost)
def verify_drawn(
    logits: Tensor, tokens: Tensor, parents: Tensor, cu_t: Tensor, drawn: Tensor, draft_logits: Tensor, draft_row: Tensor,
    draft_temperature: Tensor, step: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor,
    typical_p: Tensor, seed: Tensor, stream: Tensor, edited: Tensor | None = None,
    *, walk: str = "traversal", max_path: int, num_logprobs: int = 0, with_logprobs: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    batch = step.numel()
    path, emitted = step.new_full((2, batch, max_path), -1).unbind()
    path_len = step.new_zeros(batch)
    logprobs = logits.new_zeros(batch, max_path)
    top_tokens = step.new_full((batch, max_path, num_logprobs), -1)
    top_logprobs = logits.new_zeros(batch, max_path, num_logprobs)
    law_rows = logits if edited is None else edited
    all_laws = pipeline.laws(temperature, top_k, top_p, min_p, typical_p, seed, stream)
    for b, law in enumerate(all_laws):
        nodes = slice(int(cu_t[b]), int(cu_t[b + 1]))
        tree = Tree(tokens[nodes].tolist(), parents[nodes].tolist(), drawn[nodes].tolist())
        if not tree.tokens:
            continue
        target = partial(_target_weights, law_rows[nodes], law)
        draft = partial(_draft_weights, draft_logits, draft_row[nodes].tolist(), float(draft_temperature[b]))
        random = KeyedRandom(law.seed, law.stream, int(step[b]))
        end, extra = verify(tree, target, draft, walk, random)
        nodes_walked = tree.path(end)
        path_len[b] = len(nodes_walked)
        followed = [*(tree.tokens[i] for i in nodes_walked[1:]), extra]
        for depth, (node, token) in enumerate(zip(nodes_walked, followed, strict=True)):
            path[b, depth] = node
            picked = pipeline.report(logits[nodes][node], token, num_logprobs, with_logprobs)
            emitted[b, depth], logprobs[b, depth], top_tokens[b, depth], top_logprobs[b, depth] = picked
    return path, path_len, emitted, logprobs, top_tokens, top_logprobs
