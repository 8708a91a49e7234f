# SPDX-License-Identifier: Apache-2.0
"""build_tree: one level of best-first tree growth, from the draft's logits of a frontier to its best children.

With z, m, d, w of pyspec/spec/pipeline.py (no filters; the draft's law is softmax(d)), g the noise of (seed, stream, position) in
noise.py and E = exp(-g), for a frontier node i with the path score s(i), all in float64 but s:

    rule "deterministic"   score(i, x) = s(i) + (d(x) - log(sum_x w(x)))                = s(i) + log q(x)
    rule "shared_noise"    score(i, x) = s(i) + ((d(x) + g(x)) - log(sum_x w(x) / E(x))) = s(i) + log softmax(log q + g)(x)

rounded to float32. Request b keeps the `width` best of all tokens of all its frontier nodes: score descending, then parent
(local index in the request's frontier), then token id. Sums have the fixed order of pipeline.lane_sum; a temperature below
2^-16 counts as 1 and leaves the noise out, for greedy and sampled requests of one batch. Nodes whose s is not finite, rows
without a finite value or +inf, and scores that round to -inf give no child; where fewer than `width` are left, token and
parent are -1 and score -inf.

Column x of the logits is the token ids[x] where ids is given (a draft over a part of the target's vocabulary), else token x: noise,
ties and results go by tokens.

T frontier nodes of B requests, request b's are cu_t[b] .. cu_t[b+1]; V vocabulary. `position` is the absolute position of the
tokens drawn here, so that "shared_noise" uses the noise of the verification (docs: the shared-noise walk). Both rules may be
pruned and re-ranked at will: the trees are of the kinds "deterministic" and "shared_noise" of pyspec/trees.

Level after level on the device: the scores [B, width] of one level, flat, are node_score of the next with cu_t = width * (0 .. B)
and position + 1; start with one node of score 0 per request. The -inf of missing nodes carries on, whatever their logits are.
Guarantees: every backend gives the same bits; requests are independent. Errors: ValueError unless V >= 1, width in [1, 1024],
a known rule, cu_t rising from 0 to T, position >= 0, temperature finite and >= 0, ids ascending from 0 or more. Sources: EAGLE-2, arXiv 2406.16858.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec import noise, pipeline

CONTRACT = """
logits       [T, V]  f32
node_score   [T]     f32    # log of the probability of the node's path; -inf: not a node
cu_t         [B+1]   i32
position     [B]     i32    # of the tokens drawn here
temperature  [B]     f32
seed         [B]     i64
stream       [B]     i32
ids?         [V]     i32    # ascending
*
width        int
rule         str = "shared_noise"
-> token     [B, width]  i32
-> parent    [B, width]  i32
-> score     [B, width]  f32
"""
MAX_WIDTH = 1024
RULES = ("deterministic", "shared_noise")


def cases() -> Iterator[Case]:
    """Ragged frontiers, one of them empty, nodes that are none, both rules, parts of a vocabulary."""
    for sizes, v, width, rule, part in [
        ((2, 3), 11, 4, "shared_noise", False),
        ((1,), 1, 3, "deterministic", False),
        ((), 5, 2, "shared_noise", False),
        ((4, 0, 1), 130, 9, "deterministic", False),
        ((4, 1, 7), 4097, 32, "shared_noise", False),
        ((2,), 49152, 8, "shared_noise", False),
        ((3, 2), 333, 7, "shared_noise", True),
        ((1, 2), 70, 100, "deterministic", True),
    ]:
        g = torch.Generator().manual_seed(len(sizes) * 10007 + v)
        t, b = sum(sizes), len(sizes)
        logits = 3 * torch.randn(t, v, generator=g)
        score = -torch.rand(t, generator=g)
        score[t // 2 : t // 2 + (t > 3)] = -torch.inf
        args = (
            logits,
            score,
            torch.tensor([0, *sizes]).cumsum(0).int(),
            torch.randint(0, 4096, (b,), generator=g, dtype=torch.int32),
            torch.tensor([1.0, 0.0, 0.6])[torch.arange(b) % 3],
            torch.randint(-(2**63), 2**63 - 1, (b,), generator=g),
            torch.arange(b).int() % 3,
            torch.randperm(5 * v, generator=g)[:v].sort().values.int() if part else None,
        )
        yield Case(f"B{b}-T{t}-V{v}-{rule}{'-ids' * part}", args, {"width": width, "rule": rule})


def cost(sizes: dict[str, int], *args: Tensor | None, **kwargs: int | str) -> Cost:
    """Logits read once; about 30 operations of exp for each."""
    t, v = sizes["T"], sizes["V"]
    return Cost(bytes=4 * t * v, flops=30 * t * v)


def check(
    sizes: dict[str, int], logits: Tensor, node_score: Tensor, cu_t: Tensor, position: Tensor, temperature: Tensor,
    seed: Tensor, stream: Tensor, ids: Tensor | None = None, *, width: int, rule: str = "shared_noise",
) -> None:  # fmt: skip
    if sizes["V"] < 1:
        raise ValueError("build_tree: logits must be [T, V] with V >= 1, got V=0")
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"build_tree: width must be in [1, {MAX_WIDTH}], got {width}")
    if rule not in RULES:
        raise ValueError(f"build_tree: rule must be {'|'.join(RULES)}, got {rule}")
    pipeline.check_offsets("build_tree", cu_t, sizes["T"])
    pipeline.check_values("build_tree", "position", ">= 0", position, position >= 0)
    pipeline.check_temperature("build_tree", temperature)
    if ids is not None:
        before = torch.cat([ids.new_full((1,), -1), ids[:-1]])
        pipeline.check_values("build_tree", "ids", "above the one before it, from 0", ids, ids > before)


def child_scores(
    row: Tensor,
    score: float,
    position: int,
    temperature: float,
    seed: int,
    stream: int,
    rule: str,
    ids: Tensor | None = None,
) -> Tensor:
    """The score of every token below one frontier node [V] float32; -inf where there is no child."""
    z = pipeline.clean(row).double()
    best = z.max()
    if best == -torch.inf or not abs(score) < torch.inf:
        return torch.full_like(row, -torch.inf)
    greedy = temperature < pipeline.GREEDY_BELOW
    inv_t = 1.0 if greedy else 1.0 / temperature
    centred = z - best
    numerator, weight = centred * inv_t, noise.exp2(centred * (noise.LOG2E * inv_t))
    if rule == "shared_noise" and not greedy:
        tokens = torch.arange(z.numel(), device=z.device) if ids is None else ids.long()
        e = noise.exponential(seed, stream, position, tokens)
        numerator, weight = numerator - noise.log(e), weight / e
    log_q = numerator - noise.log(pipeline.lane_sum(weight).view(1))
    return (score + log_q).float()


@op(CONTRACT, check=check, cases=cases, cost=cost)
def build_tree(
    logits: Tensor, node_score: Tensor, cu_t: Tensor, position: Tensor, temperature: Tensor, seed: Tensor, stream: Tensor,
    ids: Tensor | None = None, *, width: int, rule: str = "shared_noise",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, vocab = position.numel(), logits.size(1)
    token, parent = position.new_full((batch, width), -1), position.new_full((batch, width), -1)
    score = logits.new_full((batch, width), -torch.inf)
    offsets, node_scores = cu_t.tolist(), node_score.tolist()
    laws = zip(position.tolist(), temperature.tolist(), seed.tolist(), stream.tolist(), strict=True)
    for b, law in enumerate(laws):
        begin, end = offsets[b], offsets[b + 1]
        if begin == end:
            continue
        rows = [child_scores(logits[t], node_scores[t], *law, rule, ids) for t in range(begin, end)]
        best, index = torch.cat(rows).sort(descending=True, stable=True)
        kept = int((best[:width] > -torch.inf).sum())
        score[b, :kept] = best[:kept]
        parent[b, :kept] = (index[:kept] // vocab).int()
        columns = index[:kept] % vocab
        token[b, :kept] = columns.int() if ids is None else ids[columns]
    return token, parent, score
