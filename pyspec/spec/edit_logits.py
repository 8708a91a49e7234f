# SPDX-License-Identifier: Apache-2.0
"""edit_logits: repetition, frequency and presence penalties, biases and masks, for every node of token trees by its own path.

Node i of request b knows its history (tokens of the prompt and the output, the root included) and the tokens of the path from the
root's child to i. n(x) is how often x is in the output so far: history_count(x) + its occurrences in that path. l = logits[i, x]:

    seen     if x is in the history or the path    y = l > 0 ? l / repetition : l * repetition    (unless repetition is 1)
             if n(x) > 0                           y = y - frequency * n(x)                       (unless frequency is 0)
                                                   y = y - presence                               (unless presence is 0)
    biased   for x = bias_token[j]                 y = y + bias[j]
    masked   if the bit of x in mask[mask_row[i]]  is 0: y = -inf       (bit x mod 32 of word x div 32; row -1: everything is allowed)

in this order. `seen` (as a whole) and `biased` each compute in float64, one rounding an operation, and round once, to float32;
what goes in (parameters too) and what comes out counts as 0 where its magnitude is below 2^-126. Logits that none of the three touches, and all of
a request's that are not biased or masked where its repetition is 1 and its frequency and presence are 0, are copied bit for bit.

B requests, T nodes of all trees (letters and trees as in verify_tree), V vocabulary; request b has the history entries
cu_history[b] .. cu_history[b+1] of N, whose tokens differ (a count of 0: in the prompt alone), and the biases cu_bias[b] ..
cu_bias[b+1] of J, whose tokens differ too; R masks of (V+31)/32 words, of which bits beyond V do not matter.

Guarantees: every backend gives the same bits; rows are independent; T = 0 gives an empty result. A bias of -inf bans a token.
Errors: ValueError for tokens outside [0, V), parents and offsets that verify_tree refuses, repetition below 2^-126 or not finite,
presence or frequency not finite, counts below 0, equal tokens in one history or one list of biases, a bias that is NaN or +inf,
mask_row outside [-1, R) (without mask, R = 0). Penalties as in Keskar et al. 2019, arXiv 1909.05858 (repetition), and as the
OpenAI API documents them (frequency, presence).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec import pipeline
from pyspec.spec.verify_tree import check_trees

CONTRACT = """
logits        [T, V]         f32
tokens        [T]            i32
parents       [T]            i32    # local to the request, -1 for the root
cu_t          [B+1]          i32
repetition    [B]            f32    # 1: off
presence      [B]            f32    # 0: off
frequency     [B]            f32    # 0: off
history       [N]            i32
history_count [N]            i32    # in the output so far
cu_history    [B+1]          i32
bias_token    [J]            i32
bias          [J]            f32    # -inf: banned
cu_bias       [B+1]          i32
mask?         [R, (V+31)/32] i32    # a bit per token, 1: allowed
mask_row      [T]            i32    # -1: everything is allowed
->            out [T, V]     f32
"""


def cases() -> Iterator[Case]:
    """Ragged trees, one of them empty; requests with every edit and with none, long histories, tokens again along a path."""
    for sizes, v, histories, biases, masks in [
        ((3, 2), 11, (4, 3), (2, 1), 2),
        ((), 5, (), (), 0),
        ((1,), 1, (0,), (0,), 0),
        ((7, 0, 1, 20), 3, (3, 0, 0, 2), (0, 0, 1, 3), 4),
        ((9, 5), 100, (60, 0), (0, 0), 0),
        ((4, 16), 49152, (3000, 20), (5, 300), 3),
    ]:
        g = torch.Generator().manual_seed(len(sizes) * 10007 + v)
        t, b = sum(sizes), len(sizes)
        parents = [int(_below(i, 1, g)) if i else -1 for size in sizes for i in range(size)]
        penalised = torch.arange(b) % 4 != 3
        bias = 3 * torch.randn(sum(biases), generator=g)
        bias[::3] = -torch.inf
        words = torch.randint(-(2**31), 2**31, (masks, (v + 31) // 32), generator=g).int()
        args = (
            4 * torch.randn(t, v, generator=g), _below(min(v, 40), t, g), torch.tensor(parents).int(), _offsets(sizes),
            torch.where(penalised, 0.5 + torch.rand(b, generator=g), 1.0),
            penalised * torch.randn(b, generator=g), penalised * torch.randn(b, generator=g),
            _distinct(v, histories, g), _below(4, sum(histories), g), _offsets(histories),
            _distinct(v, biases, g), bias, _offsets(biases),
            words if masks else None, _below(masks + 1, t, g) - 1,
        )  # fmt: skip
        yield Case(f"B{b}-T{t}-V{v}-N{sum(histories)}-J{sum(biases)}-R{masks}", args)


def _below(limit: int, n: int, g: torch.Generator) -> Tensor:
    return torch.randint(0, limit, (n,), generator=g, dtype=torch.int32)


def _distinct(vocab: int, counts: Sequence[int], g: torch.Generator) -> Tensor:
    """For each count as many ids that differ."""
    none = torch.zeros(0, dtype=torch.int32)
    return torch.cat([none, *(torch.randperm(vocab, generator=g)[:n].int() for n in counts)])


def _offsets(counts: Sequence[int]) -> Tensor:
    return torch.tensor([0, *counts]).cumsum(0).int()


def cost(sizes: dict[str, int], *args: Tensor, **kwargs: int) -> Cost:
    """A copy of the rows."""
    return Cost(bytes=8 * sizes["T"] * sizes["V"], flops=0)


def check(
    sizes: dict[str, int],
    logits: Tensor,
    tokens: Tensor,
    parents: Tensor,
    cu_t: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    history: Tensor,
    history_count: Tensor,
    cu_history: Tensor,
    bias_token: Tensor,
    bias: Tensor,
    cu_bias: Tensor,
    mask: Tensor | None,
    mask_row: Tensor,
) -> None:
    op, rows, vocab = "edit_logits", sizes["T"], sizes["V"]
    values, masks = pipeline.check_values, 0 if mask is None else mask.size(0)
    check_trees(op, vocab, rows, tokens, parents, cu_t, rows)
    usable = repetition.isfinite() & (repetition >= pipeline.TINY)
    values(op, "repetition", "finite and >= 2^-126", repetition, usable)
    values(op, "presence", "finite", presence, presence.isfinite())
    values(op, "frequency", "finite", frequency, frequency.isfinite())
    pipeline.check_offsets(op, cu_history, history.numel(), "cu_history")
    pipeline.check_offsets(op, cu_bias, bias.numel(), "cu_bias")
    values(op, "history_count", ">= 0", history_count, history_count >= 0)
    values(op, "bias", "below inf, not NaN", bias, bias < torch.inf)
    for name, ids, offsets in (("history", history, cu_history), ("bias_token", bias_token, cu_bias)):
        values(op, name, f"in [0, {vocab})", ids, (ids >= 0) & (ids < vocab))
        request = torch.bucketize(torch.arange(ids.numel(), device=ids.device), offsets[1:], right=True)
        _, place, count = (request * vocab + ids).unique(return_inverse=True, return_counts=True)
        values(op, name, "once in its request", ids, count[place] == 1)
    values(op, "mask_row", f"in [-1, {masks})", mask_row, (mask_row >= -1) & (mask_row < masks))


def _clean(x: Tensor) -> Tensor:
    """x with 0 where its magnitude is below 2^-126."""
    return torch.where(x.abs() < pipeline.TINY, 0.0, x)


def _seen(z: Tensor, n: Tensor, repetition: float, presence: float, frequency: float) -> Tensor:
    """What seen tokens' logits z [k] become; n [k] float64: how often they are in the output."""
    y = _clean(z).double()
    if repetition != 1:
        y = torch.where(y > 0, y / repetition, y * repetition)
    if frequency != 0:
        y = torch.where(n > 0, y - frequency * n, y)
    if presence != 0:
        y = torch.where(n > 0, y - presence, y)
    return _clean(y).float()


@op(CONTRACT, check=check, cases=cases, cost=cost)
def edit_logits(
    logits: Tensor,
    tokens: Tensor,
    parents: Tensor,
    cu_t: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    history: Tensor,
    history_count: Tensor,
    cu_history: Tensor,
    bias_token: Tensor,
    bias: Tensor,
    cu_bias: Tensor,
    mask: Tensor | None,
    mask_row: Tensor,
) -> Tensor:
    out, ids = logits.clone(), torch.arange(logits.size(1), device=logits.device)
    token, parent, masks = tokens.tolist(), parents.tolist(), mask_row.tolist()
    nodes, entries, biases = cu_t.tolist(), cu_history.tolist(), cu_bias.tolist()
    laws = zip(repetition.tolist(), _clean(presence).tolist(), _clean(frequency).tolist(), strict=True)
    for b, law in enumerate(laws):
        known = slice(entries[b], entries[b + 1])
        counts = dict(zip(history[known].tolist(), history_count[known].tolist(), strict=True))
        biased = bias_token[biases[b] : biases[b + 1]].long()
        more = _clean(bias[biases[b] : biases[b + 1]]).double()
        for i in range(nodes[b], nodes[b + 1]):
            row = out[i]
            if law != (1, 0, 0):
                seen, node = dict(counts), i
                while node > nodes[b]:
                    seen[token[node]] = seen.get(token[node], 0) + 1
                    node = nodes[b] + parent[node]
                x = torch.tensor(list(seen), dtype=torch.int64, device=row.device)
                n = torch.tensor(list(seen.values()), dtype=torch.float64, device=row.device)
                row[x] = _seen(row[x], n, *law)
            row[biased] = _clean(_clean(row[biased]).double() + more).float()
            if mask is not None and masks[i] >= 0:
                row[mask[masks[i]][ids // 32] >> (ids % 32) & 1 == 0] = -torch.inf
    return out
