# SPDX-License-Identifier: Apache-2.0
"""draw_children: the children of each frontier node of a token tree, drawn from the draft's law.

With w the weights of softmax(logits / temperature) in pyspec/spec/categorical.py, and the children x_1, x_2
... of a row in the order in which a verifier must look at them:

    rule "iid"                  x_j ~ w: independent draws; equal siblings are separate rounds
    rule "without_replacement"  x_j ~ w without x_1 .. x_{j-1}: in law the Gumbel-top-k of log q, descending
    rule "hybrid"               x_1 ~ w without x_2 .. x_k, which are the k - 1 tokens of the largest value
                                (value descending, then id)

A token of weight 0 is no child: where the law has fewer tokens than asked for, the places that are left hold
-1 (the first one too, in "hybrid", where all tokens with weight are among the others). Child j of a row is
drawn with the number of (seed, stream, step, node, DRAFT, j) in noise.py: `step` counts the steps of a
request and `node` is the index of the frontier node in its tree, so no number is used twice. Keyed by
position instead, the next step would draw with numbers that the verification of this one has already looked
at, which biases block and traversal verification.

T rows; `count` children are drawn in each, at most `width`, decided by the caller before anything of the row
is drawn. `logits` are the rows the draft draws from, with its edits, if any. Outputs: token, and log_q = d(x)
- log(sum of w), the log of the token's probability in the draft's law, rounded to float32 (-inf where the
token is -1; 0 at temperature 0).

Guarantees: every backend gives the same bits; rows are independent; the law of a draw is that of w up to
2^-53. Errors: ValueError unless V >= 1, width in [1, 1024], a known rule, count in [0, width], temperature
finite and >= 0, step >= 0, node in [0, 2^24). Sources: SpecInfer (arXiv 2305.09781, i.i.d.), Sequoia (arXiv
2402.12374, without replacement).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from pyspec.contract import Case, Cost, op
from pyspec.spec import noise, pipeline
from pyspec.spec.categorical import categorical, plain_weights

CONTRACT = """
logits       [T, V]  f32
count        [T]     i32    # children wanted of each row
temperature  [T]     f32
seed         [T]     i64
stream       [T]     i32
step         [T]     i32    # of the row's request
node         [T]     i32    # index of the row's node in its tree
*
width        int
rule         str = "without_replacement"
-> token     [T, width]  i32
-> log_q     [T, width]  f32
"""
MAX_WIDTH = 1024
MAX_NODE = 2**24  # an index has 24 bits of the counter
RULES = ("iid", "without_replacement", "hybrid")


class Draws(Protocol):
    """Where the children of one row get their randomness from."""

    def token(self, weight: Tensor, item: int) -> int | None:
        """Child `item`, drawn by weight [V] float64; None if there is no weight."""


class KeyedDraws:
    """The numbers of one row of a call."""

    def __init__(self, seed: int, stream: int, step: int, node: int) -> None:
        self._key = seed, stream, step, node

    def token(self, weight: Tensor, item: int) -> int | None:
        return categorical(weight, noise.uniform(*self._key, noise.DRAFT, item))


def draw(weight: Tensor, order: Tensor, count: int, rule: str, draws: Draws) -> list[int | None]:
    """`count` children of one row by weight [V] float64; `order` are the ids by value descending, then id."""
    if rule == "iid":
        return [draws.token(weight, j) for j in range(count)]
    left = weight.clone()
    top: list[int | None] = []
    if rule == "hybrid" and count > 1:
        top = [x if weight[x] > 0 else None for x in order[: count - 1].tolist()]
        top += [None] * (count - 1 - len(top))
        left[order[: count - 1]] = 0.0
    drawn: list[int | None] = []
    for j in range(count - len(top)):
        token = draws.token(left, j)
        if token is not None:
            left[token] = 0.0
        drawn.append(token)
    return drawn + top


def cases() -> Iterator[Case]:
    """Every rule, rows that want fewer children than there is room for, and laws with fewer tokens than children."""
    for t, v, width, rule in [
        (3, 11, 4, "without_replacement"),
        (1, 1, 2, "hybrid"),
        (0, 5, 1, "iid"),
        (5, 37, 3, "iid"),
        (4, 3, 6, "without_replacement"),
        (6, 130, 5, "hybrid"),
        (3, 4097, 8, "without_replacement"),
        (2, 49152, 4, "hybrid"),
    ]:
        g = torch.Generator().manual_seed(t * 10007 + v)
        ints = lambda high, size=t, g=g: torch.randint(0, high, (size,), generator=g, dtype=torch.int32)
        logits = 3 * torch.randn(t, v, generator=g)
        if t > 3:
            logits[0, 1:] = -torch.inf
        args = (
            logits,
            torch.full((t,), width, dtype=torch.int32) - ints(2),
            torch.tensor([1.0, 0.6, 0.0])[torch.arange(t) % 3],
            torch.randint(-(2**63), 2**63 - 1, (t,), generator=g),
            torch.arange(t).int() % 3,
            ints(1000),
            ints(64),
        )
        yield Case(f"T{t}-V{v}-{rule}", args, {"width": width, "rule": rule})


def cost(sizes: dict[str, int], *args: Tensor, **kwargs: int | str) -> Cost:
    """Logits read once; about 30 operations of exp for each."""
    t, v = sizes["T"], sizes["V"]
    return Cost(bytes=4 * t * v, flops=30 * t * v)


def check(
    sizes: dict[str, int], logits: Tensor, count: Tensor, temperature: Tensor, seed: Tensor, stream: Tensor, step: Tensor,
    node: Tensor, *, width: int, rule: str = "without_replacement",
) -> None:  # fmt: skip
    op, values = "draw_children", pipeline.check_values
    if sizes["V"] < 1:
        raise ValueError(f"{op}: logits must be [T, V] with V >= 1, got V=0")
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"{op}: width must be in [1, {MAX_WIDTH}], got {width}")
    if rule not in RULES:
        raise ValueError(f"{op}: rule must be {'|'.join(RULES)}, got {rule}")
    values(op, "count", f"in [0, {width}]", count, (count >= 0) & (count <= width))
    pipeline.check_temperature(op, temperature)
    values(op, "step", ">= 0", step, step >= 0)
    values(op, "node", f"in [0, {MAX_NODE})", node, (node >= 0) & (node < MAX_NODE))


@op(CONTRACT, check=check, cases=cases, cost=cost)
def draw_children(
    logits: Tensor, count: Tensor, temperature: Tensor, seed: Tensor, stream: Tensor, step: Tensor, node: Tensor,
    *, width: int, rule: str = "without_replacement",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    rows = logits.size(0)
    token = count.new_full((rows, width), -1)
    log_q = logits.new_full((rows, width), -torch.inf)
    keys = zip(*(t.tolist() for t in (seed, stream, step, node)), strict=True)
    for t, (wanted, heat, key) in enumerate(zip(count.tolist(), temperature.tolist(), keys, strict=True)):
        z = pipeline.clean(logits[t]).double()
        order = z.sort(descending=True, stable=True).indices
        weight = plain_weights(logits[t], heat)
        log_sum = noise.log1(pipeline.lane_sum(weight).item()) if weight.any() else 0.0
        inv_t = 1.0 / heat if heat >= pipeline.GREEDY_BELOW else 0.0
        for j, x in enumerate(draw(weight, order, wanted, rule, KeyedDraws(*key))):
            if x is not None:
                token[t, j] = x
                log_q[t, j] = (z[x] - z[order[0]]) * inv_t - log_sum
    return token, log_q
