# SPDX-License-Identifier: Apache-2.0
"""The processed law of a row of logits and the pick from it: one definition for `sample` and for every node of `verify_tree`.

A token is picked from its edited row if there is one (penalties, bias, masks), else from the raw one. Either row z [V] is first
cleaned: NaN counts as -inf, magnitudes below 2^-126 as 0; where +inf occurs, +inf counts as 0 and all else as -inf. m = max z. Tokens are
ordered by value descending, then id ascending. In float64, with the exp2 and log of noise.py and 1/t = 1 / temperature:

    logprob(x) = (z(x) - m) - log(sum_x 2^((z(x) - m) log2(e)))     always of the raw row, rounded to float32
    d(x) = (z(x) - m) (1/t)       e(x) = (z(x) - m) (log2(e) (1/t))       w(x) = 2^e(x) = exp(d(x))
    top_k   keeps the first top_k tokens (0: all)
    top_p   keeps x while the w of the tokens before it, added in order, is below top_p * (sum of the kept w)  (1: all)
    min_p   keeps x while d(x) >= log(min_p), that is p(x) >= min_p * (largest p)  (below 2^-126: all)
    typical_p  of the tokens kept so far: W = sum of w, c = (sum of w e) / W, r(x) = |e(x) - c|, the distance in bits of the
            surprise of x from their entropy. Their w are added by r ascending (of equal ones first those with e >= c, from c
            outward in either) while the sum is below typical_p * W; keeps x up to the r of the last one added  (1: all)
    token = argmax of d(x) + g(x) over the kept, ties to the lowest id;  g: the noise of (seed, stream, position), noise.py

The order temperature, top-k, top-p, min-p, typical-p is that of Hugging Face transformers. The first three filters keep a prefix
of one order, typical-p (Meister et al., arXiv 2202.00666) all values of an interval, none an empty set. A temperature below 2^-16
counts as 0: the token is the first in order (the argmax). A row without a finite value or +inf has no law: where the row picked
from is such, token 0; where it or the raw one is, top_tokens are 0, 1, 2 ... and every logprob is NaN. Without logprobs the raw row
is not looked at beside an edited one, and the logprob is 0 where there is a law. Sums over a row go in LANES lanes (id mod
LANES), then lane i + lane i + half; w is 2^-1000 and w e is 0 where e is below -1000 or x is dropped already.
"""

from __future__ import annotations

from itertools import accumulate, takewhile
from typing import NamedTuple

import torch
from torch import Tensor

from pyspec.spec import noise

LANES = 32
TINY = 2.0**-126
GREEDY_BELOW = 2.0**-16
MAX_LOGPROBS = 1024


class Law(NamedTuple):
    """Sampling parameters of one row."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    stream: int
    typical_p: float = 1.0


class Pick(NamedTuple):
    """What one row gives: the token, its logprob, and the first num_logprobs tokens in order with theirs."""

    token: int
    logprob: float
    top_tokens: Tensor  # [num_logprobs] i32
    top_logprobs: Tensor  # [num_logprobs] f32


def laws(*per_row: Tensor) -> list[Law]:
    """The laws of temperature, top_k, top_p, min_p, typical_p, seed, stream [N]."""
    rows = zip(*(t.tolist() for t in per_row), strict=True)
    return [Law(t, k, p, m, seed, stream, typical) for t, k, p, m, typical, seed, stream in rows]


def lane_sum(x: Tensor) -> Tensor:
    """The sum of x [V] float64 in the fixed order."""
    rows = torch.nn.functional.pad(x, (0, -x.numel() % LANES)).view(-1, LANES)
    total = torch.zeros(LANES, dtype=x.dtype, device=x.device)
    for row in rows:
        total = total + row
    half = LANES // 2
    while half:
        total = total[:half] + total[half : 2 * half]
        half //= 2
    return total[0]


def clean(row: Tensor) -> Tensor:
    """The row that the law is defined on."""
    row = torch.where(row.isnan(), -torch.inf, row)
    row = torch.where(row.abs() < TINY, 0.0, row)
    top = row == torch.inf
    return torch.where(top, 0.0, -torch.inf) if top.any() else row


def kept(centred: Tensor, order: Tensor, law: Law) -> Tensor:
    """Which tokens survive the filters: [V] bool. centred = z - m, `order` the ids in order."""
    inv_t = 1.0 / law.temperature
    keep = torch.zeros_like(centred, dtype=torch.bool)
    count = law.top_k or centred.numel()
    keep[order[:count]] = True
    if law.top_p < 1:
        weight = noise.exp2(torch.where(keep, centred, -torch.inf) * (noise.LOG2E * inv_t))
        limit = law.top_p * lane_sum(weight).item()
        before = accumulate(weight[order[:count]].tolist(), initial=0.0)
        count = max(1, sum(1 for _ in takewhile(lambda mass: mass < limit, before)))
        keep[order[count:]] = False
    if law.min_p >= TINY:
        keep &= centred * inv_t >= noise.log1(law.min_p)
    return keep & typical(torch.where(keep, centred, -torch.inf), order, law) if law.typical_p < 1 else keep


def typical(centred: Tensor, order: Tensor, law: Law) -> Tensor:
    """Which tokens typical-p keeps: [V] bool. centred is -inf where a token is dropped already."""
    e = centred * (noise.LOG2E * (1.0 / law.temperature))
    weight = noise.exp2(e)
    total = lane_sum(weight)
    c = (lane_sum(torch.where(e > noise.EXP2_LOWEST, weight * e, 0.0)) / total).item()
    distance = (e - c).abs()
    left = order[(e > -torch.inf)[order]]
    outward = torch.cat([left[e[left] >= c].flip(0), left[e[left] < c]])
    outward = outward[distance[outward].sort(stable=True).indices]
    limit = law.typical_p * total.item()
    before = accumulate(weight[outward].tolist(), initial=0.0)
    count = max(1, sum(1 for _ in takewhile(lambda mass: mass < limit, before)))
    return distance <= distance[outward[:count][-1]]


def draw(row: Tensor, position: int, law: Law) -> int | None:
    """The token at an absolute position from the row [V] float32 that is picked from; None if it has no law."""
    z = clean(row).double()
    order = z.sort(descending=True, stable=True).indices
    best = z[order[0]]
    if best == -torch.inf:
        return None
    if law.temperature < GREEDY_BELOW:
        return int(order[0])
    centred = z - best
    d = centred * (1.0 / law.temperature)
    score = d + noise.gumbel(law.seed, law.stream, position, d.numel(), d.device)
    score = torch.where(kept(centred, order, law), score, -torch.inf)
    return int((score == score.max()).nonzero()[0, 0])


def raw_logprobs(logits: Tensor) -> tuple[Tensor, Tensor] | None:
    """Ids in order and the logprob of every token [V] float32, of a raw row [V] float32; None if it has no law."""
    z = clean(logits).double()
    order = z.sort(descending=True, stable=True).indices
    centred = z - z[order[0]]
    if z[order[0]] == -torch.inf:
        return None
    return order, (centred - noise.log(lane_sum(noise.exp2(centred * noise.LOG2E)).view(1))).float()


def pick(
    logits: Tensor,
    position: int,
    law: Law,
    num_logprobs: int,
    edited: Tensor | None = None,
    with_logprobs: bool = True,
) -> Pick:
    """The token at an absolute position from logits [V] float32, picked from edited [V] float32 if given."""
    return report(
        logits, draw(logits if edited is None else edited, position, law), num_logprobs, with_logprobs
    )


def report(logits: Tensor, token: int | None, num_logprobs: int, with_logprobs: bool) -> Pick:
    """A token picked by a row with the logprobs of the raw row logits [V] float32; None: the row picked from has no law."""
    raw = raw_logprobs(logits) if with_logprobs else None
    first = torch.arange(num_logprobs, dtype=torch.int32, device=logits.device)
    if raw is not None and token is not None:
        order, logprobs = raw
        top = order[:num_logprobs]
        return Pick(token, logprobs[token].item(), top.int(), logprobs[top])
    nothing = torch.full_like(first, torch.nan, dtype=torch.float32)
    return Pick(token or 0, torch.nan if with_logprobs or token is None else 0.0, first, nothing)


def check_law(
    op: str,
    vocab: int,
    positions: tuple[str, Tensor],
    parameters: tuple[Tensor, ...],
    num_logprobs: int,
    with_logprobs: bool = True,
) -> None:
    """Raise ValueError unless positions and (temperature, top_k, top_p, min_p, typical_p) [N] are in their ranges."""
    if vocab < 1:
        raise ValueError(f"{op}: logits must be [T, V] with V >= 1, got V=0")
    most = min(vocab, MAX_LOGPROBS)
    if not 0 <= num_logprobs <= most:
        raise ValueError(f"{op}: num_logprobs must be in [0, {most}], got {num_logprobs}")
    if num_logprobs and not with_logprobs:
        raise ValueError(f"{op}: num_logprobs must be 0 without logprobs, got {num_logprobs}")
    temperature, top_k, top_p, min_p, typical_p = parameters
    check_values(op, positions[0], ">= 0", positions[1], positions[1] >= 0)
    check_temperature(op, temperature)
    check_values(op, "top_k", f"in [0, {vocab}]", top_k, (top_k >= 0) & (top_k <= vocab))
    check_values(op, "top_p", "in (0, 1]", top_p, (top_p > 0) & (top_p <= 1))
    check_values(op, "min_p", "in [0, 1]", min_p, (min_p >= 0) & (min_p <= 1))
    check_values(op, "typical_p", "in (0, 1]", typical_p, (typical_p > 0) & (typical_p <= 1))


def check_temperature(op: str, temperature: Tensor) -> None:
    ok = temperature.isfinite() & (temperature >= 0)
    check_values(op, "temperature", "finite and >= 0", temperature, ok)


def check_offsets(op: str, cu: Tensor, total: int, name: str = "cu_t") -> None:
    """Raise ValueError unless the offsets cu [B+1] rise from 0 to total."""
    offsets = cu.tolist()
    for b, offset in enumerate(offsets):
        low, high = (offsets[b - 1] if b else 0), (total if b else 0)
        if b == len(offsets) - 1:
            low = total
        if not low <= offset <= high:
            rule = str(low) if low == high else f"in [{low}, {high}]"
            raise ValueError(f"{op}: {name}[{b}] must be {rule}, got {offset}")


def check_values(op: str, name: str, rule: str, values: Tensor, ok: Tensor) -> None:
    """Raise ValueError for the first element of values [N] that is not ok."""
    if not ok.all():
        i = int((~ok).nonzero()[0, 0])
        value = values[i].item()
        text = f"{value:g}" if values.is_floating_point() else str(value)
        raise ValueError(f"{op}: {name}[{i}] must be {rule}, got {text}")
