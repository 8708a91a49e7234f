# SPDX-License-Identifier: Apache-2.0
"""Decoding of many requests at once by the ops alone, with a tiny model, as an engine would.

The model's row depends on the last two tokens. Every request has a seed of its own and the root's position as
its step; the joint law of the first LENGTH tokens is computed by the textbook in numpy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyspec import ops

VOCAB, LENGTH = 5, 3
PROMPT = (1, 0)
FILTERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
NO_FILTER: dict[str, float] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0}


@dataclass(frozen=True)
class Edits:
    """Penalties, biases, and a grammar that knows the last token: allowed[x] are the tokens after x."""

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    allowed: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True)
class Cell:
    """One setting. shape: children of each node of a level; heat: of the draft, over the target's temperature."""

    shape: tuple[int, ...]
    temperature: float
    filters: dict[str, float] = field(hash=False)
    edits: Edits | None
    rule: str
    verifier: str
    heat: float = 1.0
    model: int = 0

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        filters = ",".join(f"{k}={v}" for k, v in self.filters.items()) or "-"
        edits = "edits" if self.edits else "-"
        return (
            f"{self.verifier} {self.rule} {shape} T={self.temperature} {filters} {edits} model {self.model}"
        )


def ints(values: Any) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


class Model:
    """Rows of target and draft by state: the last two tokens, of V * V."""

    def __init__(self, number: int) -> None:
        g = torch.Generator().manual_seed(1000 + number)
        self.target = 1.3 * torch.randn(VOCAB * VOCAB, VOCAB, generator=g)
        self.draft = self.target + 0.9 * torch.randn(VOCAB * VOCAB, VOCAB, generator=g)


# ------------------------------------------------------------------------------------------------------- the textbook
def textbook(row: NDArray[np.float64], output: tuple[int, ...], cell: Cell) -> NDArray[np.float64]:
    """The processed law [V] after PROMPT and `output`."""
    z, e = row.copy(), cell.edits
    if e is not None:
        for x in {*PROMPT, *output}:
            z[x] = z[x] / e.repetition if z[x] > 0 else z[x] * e.repetition
        for x in set(output):
            z[x] -= e.frequency * output.count(x) + e.presence
        for x, value in e.bias:
            z[x] += value
        if e.allowed is not None:
            last = (*PROMPT, *output)[-1]
            z[[x for x in range(VOCAB) if x not in e.allowed[last]]] = -np.inf
    if cell.temperature == 0:
        return np.eye(VOCAB)[z.argmax()]
    p = np.exp((z - z.max()) / cell.temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    filters = {**NO_FILTER, **cell.filters}
    if filters["top_k"]:
        p[order[int(filters["top_k"]) :]] = 0
        p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= filters["top_p"]]] = 0
    p[p < filters["min_p"] * p.max()] = 0
    p /= p.sum()
    if filters["typical_p"] < 1:
        surprise = -np.log(p, where=p > 0, out=np.full(VOCAB, -np.inf))
        nearest = np.argsort(np.abs(surprise - (p * np.where(p > 0, surprise, 0)).sum()), kind="stable")
        before = np.cumsum(p[nearest]) - p[nearest]
        p[nearest[before >= filters["typical_p"]]] = 0
        p /= p.sum()
    return p


def law_of(cell: Cell) -> NDArray[np.float64]:
    """Of the first LENGTH tokens [V ** LENGTH]."""
    rows, law = Model(cell.model).target.double().numpy(), np.ones(1)
    for n in range(LENGTH):
        texts = list(itertools.product(range(VOCAB), repeat=n))
        last = [(*PROMPT, *text)[-2:] for text in texts]
        laws = [textbook(rows[a * VOCAB + b], t, cell) for t, (a, b) in zip(texts, last, strict=True)]
        law = (law[:, None] * np.stack(laws)).reshape(-1)
    return law


# ------------------------------------------------------------------------------------------------------------ decoding
@dataclass
class Trees:
    """Trees of A requests of one static shape of S nodes; nodes that are missing are not `there`."""

    tokens: Tensor  # [A, S]
    there: Tensor  # [A, S] bool
    states: Tensor  # [A, S]: rows of the model
    parents: list[int]
    kinds: list[int]  # how each node was drawn


Wrong = Callable[[dict[str, Any]], None]  # changes the arguments of verify_drawn


def draw_trees(
    cell: Cell, model: Model, roots: Tensor, states: Tensor, keys: dict[str, Tensor], keyed_by_position: bool
) -> Trees:
    """keys: seed, stream, position [A], which is the step of the draws too."""
    count = roots.numel()
    tokens, there, all_states = [roots], [torch.ones(count, dtype=torch.bool)], [states]
    parents, kinds, level = [-1], [0], [0]
    heat = cell.heat * (cell.temperature or 1.0)
    for depth, width in enumerate(cell.shape):
        rows = model.draft[torch.stack([all_states[i] for i in level], 1)].view(-1, VOCAB)
        many = len(level)
        repeat = lambda t, n=many: t.repeat_interleave(n)
        step, nodes = keys["position"], ints(level).repeat(count)
        if keyed_by_position:
            step, nodes = step + depth, torch.zeros_like(nodes)
        if cell.rule == "deterministic":
            children = rows.topk(width, 1).indices.int()
        elif cell.rule == "shared_noise":
            children, _, _ = ops.build_tree(
                rows, torch.zeros(len(rows)), torch.arange(len(rows) + 1).int(), repeat(keys["position"] + depth + 1),
                torch.full((len(rows),), heat), repeat(keys["seed"]), repeat(keys["stream"]), width=width,
            )  # fmt: skip
        else:
            children, _ = ops.draw_children(
                rows, torch.full((len(rows),), width).int(), torch.full((len(rows),), heat), repeat(keys["seed"]),
                repeat(keys["stream"]), repeat(step), nodes, width=width, rule=cell.rule,
            )  # fmt: skip
        children = children.view(count, len(level), width)
        first = len(tokens)
        for place, parent in enumerate(level):
            for j in range(width):
                token = children[:, place, j]
                tokens.append(token.clamp(min=0))
                there.append(there[parent] & (token >= 0))
                all_states.append(all_states[parent] % VOCAB * VOCAB + tokens[-1].long())
                parents.append(parent)
                kinds.append(
                    {"iid": 1, "without_replacement": 2, "hybrid": 2 if j == 0 else 0}.get(cell.rule, 0)
                )
        level = list(range(first, len(tokens)))
    return Trees(torch.stack(tokens, 1), torch.stack(there, 1), torch.stack(all_states, 1), parents, kinds)


def edited(cell: Cell, logits: Tensor, call: dict[str, Tensor], counts: Tensor) -> Tensor:
    """Rows after the edits; counts [A, V] of the output so far."""
    e, requests = cell.edits, counts.size(0)
    assert e is not None
    known = counts > 0
    known[:, list(PROMPT)] = True
    places = known.nonzero()
    many = lambda value: torch.full((requests,), value)
    masks, rows = None, torch.full_like(call["tokens"], -1)
    if e.allowed is not None:
        masks, rows = ints([[sum(1 << x for x in after)] for after in e.allowed]), call["tokens"]
    return ops.edit_logits(
        logits, call["tokens"], call["parents"], call["cu_t"], many(e.repetition), many(e.presence), many(e.frequency),
        places[:, 1].int(), counts[known].int(), ints([0, *known.sum(1).cumsum(0).tolist()]),
        ints([x for x, _ in e.bias] * requests), torch.tensor([value for _, value in e.bias] * requests),
        torch.arange(requests + 1).int() * len(e.bias), masks, rows,
    )  # fmt: skip


def tree_call(
    cell: Cell, model: Model, trees: Trees, keys: dict[str, Tensor], counts: Tensor
) -> dict[str, Any]:
    """Arguments of verify_tree but the position, of trees without the nodes that are missing; counts [A, V] of the output so far."""
    there, requests = trees.there, trees.there.size(0)
    ranks = there.cumsum(1) - 1
    above = torch.where(ints(trees.parents) >= 0, ranks[:, [max(p, 0) for p in trees.parents]], -1)
    many = lambda value, dtype=torch.float32: torch.full((requests,), value, dtype=dtype)
    filters = {**NO_FILTER, **cell.filters}
    call: dict[str, Any] = {
        "logits": model.target[trees.states[there]], "tokens": trees.tokens[there].int(), "parents": above[there].int(),
        "cu_t": ints([0, *there.sum(1).cumsum(0).tolist()]), "temperature": many(cell.temperature),
        "top_k": many(filters["top_k"], torch.int32), **{name: many(filters[name]) for name in ("top_p", "min_p", "typical_p")},
        "seed": keys["seed"], "stream": keys["stream"], "max_path": len(cell.shape) + 1, "with_logprobs": False,
    }  # fmt: skip
    return call if cell.edits is None else call | {"edited": edited(cell, call["logits"], call, counts)}


def step(
    cell: Cell, model: Model, trees: Trees, keys: dict[str, Tensor], counts: Tensor, wrong: Wrong | None
) -> tuple[Tensor, Tensor]:
    """path_len [A] and emitted [A, E] of one verification."""
    call = tree_call(cell, model, trees, keys, counts)
    if cell.verifier in ("shared_noise", "greedy"):
        return ops.verify_tree(position=keys["position"], **call)[1:3]
    draft = model.draft[trees.states[trees.there]]
    call |= {
        "drawn": ints(trees.kinds).expand_as(trees.there)[trees.there], "draft_logits": draft, "step": keys["position"],
        "draft_row": torch.arange(len(draft)).int(), "walk": cell.verifier,
        "draft_temperature": torch.full_like(call["temperature"], cell.heat * (cell.temperature or 1.0)),
    }  # fmt: skip
    if wrong is not None:
        wrong(call)
    return ops.verify_drawn(**call)[1:3]


def decode(
    cell: Cell, count: int, first_seed: int, wrong: Wrong | None = None, keyed_by_position: bool = False
) -> NDArray[np.int64]:
    """How often each text of LENGTH tokens came out [V ** LENGTH], of `count` requests with seeds from first_seed on.

    keyed_by_position: a wrong engine, whose draws at a position use the same numbers in every step that looks at it.
    """
    model = Model(cell.model)
    room = LENGTH + len(cell.shape) + 1
    text = torch.zeros(count, len(PROMPT) + room, dtype=torch.int64)
    text[:, : len(PROMPT)] = torch.tensor(PROMPT)
    emitted = torch.zeros(count, dtype=torch.int64)
    seeds = first_seed + torch.arange(count)
    while (active := (emitted < LENGTH).nonzero()[:, 0]).numel():
        n = emitted[active]
        end = n + len(PROMPT)
        root = text[active, end - 1]
        keys = {"seed": seeds[active], "stream": torch.zeros_like(n).int(), "position": (end - 1).int()}
        states = text[active, end - 2] * VOCAB + root
        trees = draw_trees(cell, model, root.int(), states, keys, keyed_by_position)
        output = torch.where(torch.arange(room) < n[:, None], text[active, len(PROMPT) :], VOCAB)
        counts = torch.zeros(n.numel(), VOCAB + 1, dtype=torch.int64)
        counts.scatter_add_(1, output, torch.ones_like(output))
        path_len, new = step(cell, model, trees, keys, counts[:, :VOCAB], wrong)
        for j in range(len(cell.shape) + 1):
            got = j < path_len
            text[active[got], end[got] + j] = new[got, j].long()
        emitted[active] += path_len
    index = torch.zeros(count, dtype=torch.int64)
    for j in range(LENGTH):
        index = index * VOCAB + text[:, len(PROMPT) + j]
    return torch.bincount(index, minlength=VOCAB**LENGTH).numpy()


def sampled(cell: Cell, count: int, first_seed: int, **options: Any) -> NDArray[np.int64]:
    """`decode` in calls of at most 100,000 requests."""
    size = 100_000
    return sum(
        decode(cell, min(size, count - i * size), first_seed + i * size, **options)
        for i in range(math.ceil(count / size))
    )
