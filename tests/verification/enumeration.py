# SPDX-License-Identifier: Apache-2.0
"""Exact laws: runs the specification's own code once for every outcome of its randomness.

`outcomes(program)` calls program(fork) for every way its choices can go. A context is a tuple of tokens after
the prompt; p[context] and q[context] are the laws of the next token, float64 tensors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from pyspec.spec import rejection
from pyspec.spec.draw_children import RULES
from pyspec.spec.draw_children import draw as draw_by_rule
from pyspec.spec.rejection import DETERMINISTIC, Tree
from pyspec.spec.verify_drawn import kinds

Context = tuple[int, ...]
Laws = dict[Context, Tensor]


class Fork:
    """One run: follows the prefix of choices, then takes the first of each."""

    def __init__(self, prefix: list[int]) -> None:
        self.prefix, self.taken, self.probability = prefix, [], 1.0

    def choose(self, options: list[tuple[Any, float]]) -> Any:
        """One of (value, probability > 0)."""
        i = self.prefix[len(self.taken)] if len(self.taken) < len(self.prefix) else 0
        self.taken.append((i, len(options)))
        self.probability *= options[i][1]
        return options[i][0]

    def happens(self, probability: float) -> bool:
        if not 0 < probability < 1:
            return probability > 0
        return self.choose([(True, probability), (False, 1 - probability)])

    def draw(self, weight: Tensor) -> int | None:
        """A token by weight."""
        w = weight.tolist()
        total = sum(w)
        options = [(x, value / total) for x, value in enumerate(w) if value > 0]
        return options[0][0] if len(options) == 1 else self.choose(options) if options else None


def outcomes(program: Callable[[Fork], Any]) -> Iterator[tuple[float, Any]]:
    """(probability, result) of every outcome."""
    prefix: list[int] = []
    while True:
        fork = Fork(prefix)
        result = program(fork)
        yield fork.probability, result
        taken = fork.taken
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return
        prefix = [i for i, _ in taken[:-1]] + [taken[-1][0] + 1]


class ForkedDraws:
    """The randomness of draw_children."""

    def __init__(self, fork: Fork) -> None:
        self.fork = fork

    def token(self, weight: Tensor, item: int) -> int | None:
        return self.fork.draw(weight)


class ForkedRandom:
    """The randomness of verify_drawn. The token after the path is not chosen: its law stands for it, where nothing comes after."""

    def __init__(self, fork: Fork, walk: str) -> None:
        self.fork, self.walk = fork, walk

    def accept(self, node: int, mass: float, bound: float) -> bool:
        return self.fork.happens(mass / bound)

    def token(self, node: int, weight: Tensor) -> Any:
        return self.fork.draw(weight) if self.walk == "target" else weight / weight.sum()


# ------------------------------------------------------------------------------------------------------------- drawing
def by_value(q: Tensor) -> Tensor:
    return q.sort(descending=True, stable=True).indices


def draw(rule: str, q: Tensor, count: int, fork: Fork) -> list[int]:
    """Children of one node: by the rules of draw_children, the likeliest, or wrongly sorted after drawing."""
    order = by_value(q)
    if rule == "deterministic":
        return [x for x in order[:count].tolist() if q[x] > 0]
    if rule == "hybrid_sampled_last":
        first, *others = draw_by_rule(q, order, count, "hybrid", ForkedDraws(fork))
        return [x for x in (*others, first) if x is not None]
    known = rule if rule in RULES else "without_replacement"
    drawn = [x for x in draw_by_rule(q, order, count, known, ForkedDraws(fork)) if x is not None]
    if rule == "sorted_by_value":
        drawn.sort(key=lambda x: (-float(q[x]), x))
    if rule == "sorted_by_id":
        drawn.sort()
    return drawn


Drawing = Callable[[Context, int, Fork], list[int]]  # context, depth -> tokens of the children


def grow(children: Drawing, depth: int, fork: Fork) -> Tree:
    """A tree of so many levels, level by level; nodes that never were drawn as something are deterministic."""
    tokens, parents, contexts = [-1], [-1], [()]
    level = [0]
    for d in range(depth):
        start = len(tokens)
        for node in level:
            for x in children(contexts[node], d, fork):
                tokens.append(x)
                parents.append(node)
                contexts.append((*contexts[node], x))
        level = list(range(start, len(tokens)))
    return Tree(tuple(tokens), tuple(parents), (DETERMINISTIC,) * len(tokens))


def trees(children: Drawing, depth: int) -> dict[Tree, float]:
    """Every tree and its probability."""
    found: dict[Tree, float] = {}
    for probability, tree in outcomes(lambda fork: grow(children, depth, fork)):
        found[tree] = found.get(tree, 0.0) + probability
    return found


def drawn_trees(rule: str, q: Laws, shape: tuple[int, ...]) -> dict[Tree, float]:
    return trees(lambda context, d, fork: draw(rule, q[context], shape[d], fork), len(shape))


def assume(tree: Tree, rule: str) -> Tree:
    """The tree as a verifier of this rule takes it ("as drawn": as it says)."""
    if rule == "as drawn":
        return tree
    drawn = list(tree.drawn)
    for node in range(len(tree.tokens)):
        children = tree.children(node)
        if rule == "hybrid_sampled_last":
            assumed = kinds("hybrid", len(children))[::-1]
        else:
            assumed = (
                [DETERMINISTIC] * len(children) if rule == "deterministic" else kinds(rule, len(children))
            )
        for child, kind in zip(children, assumed, strict=True):
            drawn[child] = kind
    return tree._replace(drawn=tuple(drawn))


def contexts(tree: Tree) -> list[Context]:
    """Of every node."""
    found: list[Context] = [()]
    for token, parent in zip(tree.tokens[1:], tree.parents[1:], strict=True):
        found.append((*found[parent], token))
    return found


# ----------------------------------------------------------------------------------------------------------- verifying
Verifier = Callable[
    [Tree, Fork], tuple[Context, Tensor]
]  # the accepted path and the law of the token after it


def verifier(walk: str, rule: str, p: Laws, q: Laws) -> Verifier:
    """The specification's own recursion, told that the children were drawn by `rule`."""

    def run(tree: Tree, fork: Fork) -> tuple[Context, Tensor]:
        tree = assume(tree, rule)
        at = contexts(tree)
        end, extra = rejection.verify(tree, AtNodes(p, at), AtNodes(q, at), walk, ForkedRandom(fork, walk))
        law = torch.eye(len(p[()]), dtype=torch.float64)[extra] if walk == "target" else extra
        return at[end], law

    return run


class AtNodes:
    """The weights of a tree's nodes, by their contexts."""

    def __init__(self, laws: Laws, at: list[Context]) -> None:
        self.laws, self.at = laws, at

    def __call__(self, node: int) -> Tensor | None:
        return self.laws.get(self.at[node])


def memoised(monkeypatch: pytest.MonkeyPatch) -> None:
    """hand_down has no randomness: compute it once per tree, though a tree is run once per outcome."""
    plain = rejection.hand_down
    last: list[Any] = [None, None, None]  # tree, the target's laws, result

    def hand_down(tree: Tree, target: AtNodes, draft: AtNodes) -> Any:
        if tree != last[0] or target.laws is not last[1]:
            last[:] = tree, target.laws, plain(tree, target, draft)
        return last[2]

    monkeypatch.setattr(rejection, "hand_down", hand_down)


class StepLaw(NamedTuple):
    """What one step does: distance of its law from the target's, and the tokens it accepts on average."""

    distance: float
    accepted: float


def joint(p: Laws, length: int) -> Tensor:
    """The target's law of so many tokens: [V] * length."""
    law, vocab = torch.ones((), dtype=torch.float64), len(p[()])
    for n in range(length):
        rows = torch.stack([p[c] for c in itertools.product(range(vocab), repeat=n)])
        law = law[..., None] * rows.view(*[vocab] * n, vocab)
    return law


def continued(prefixes: dict[Context, Tensor], p: Laws, length: int) -> Tensor:
    """The joint law of `length` tokens where after each prefix comes a token by its law [V], then plain sampling."""
    vocab = len(p[()])
    total = torch.zeros([vocab] * length, dtype=torch.float64)
    for prefix, law in prefixes.items():
        for x in range(vocab):
            place = (*prefix, x)
            below = {c[len(place) :]: w for c, w in p.items() if c[: len(place)] == place}
            total[place] += law[x] * joint(below, length - len(place)) if below else law[x]
    return total


def distance(a: Tensor, b: Tensor) -> float:
    """Total variation."""
    return 0.5 * float((a - b).abs().sum())


def step_law(verify: Verifier, drawn: dict[Tree, float], p: Laws, length: int) -> StepLaw:
    """The exact law of a step followed by plain sampling, `length` tokens in all, against the target's."""
    prefixes: dict[Context, Tensor] = {}
    accepted = 0.0
    for tree, chance in drawn.items():
        for probability, (path, law) in outcomes(lambda fork, tree=tree: verify(tree, fork)):
            weight = chance * probability
            prefixes[path] = prefixes.get(path, 0.0) + weight * law
            accepted += weight * len(path)
    return StepLaw(distance(continued(prefixes, p, length), joint(p, length)), accepted)


# ----------------------------------------------------------------------------------------------------------- instances
def instance(
    vocab: int, length: int, seed: int, *, sparse: bool = False, spread: float = 0.8
) -> tuple[Laws, Laws]:
    """Random laws of target and draft at every context shorter than `length` + 1; the draft resembles the target."""
    g = np.random.default_rng(seed)
    p, q = {}, {}
    for n in range(length + 1):
        for context in itertools.product(range(vocab), repeat=n):
            a, b = g.dirichlet([spread] * vocab), g.dirichlet([spread] * vocab)
            b += 0.7 * a
            b /= b.sum()
            if sparse:
                a[g.integers(vocab)] = 0.0
                b[g.integers(vocab)] = 0.0
                if g.random() < 0.4:
                    b[g.integers(vocab)] = 0.0
                if b.sum() == 0:
                    b[g.integers(vocab)] = 1.0
            p[context], q[context] = (torch.from_numpy(w / w.sum()) for w in (a, b))
    return p, q
