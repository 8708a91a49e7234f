# SPDX-License-Identifier: Apache-2.0
"""The recursion of `verify_drawn` for one tree, on weights of laws and any source of randomness.

Formulas: verify_drawn.py. Tests run this very code with a source that enumerates every outcome, which gives
the exact law of what is emitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyspec.spec import noise, pipeline
from pyspec.spec.categorical import categorical
from pyspec.spec.pipeline import lane_sum

DETERMINISTIC, IID, WITHOUT_REPLACEMENT = range(3)
WALKS = ("top_down", "traversal", "target")

Weights = Callable[[int], Tensor]
DraftWeights = Callable[[int], Tensor | None]


class Tree(NamedTuple):
    """One tree: tokens, parents (-1 at the root, node 0) and how each node was drawn."""

    tokens: Sequence[int]
    parents: Sequence[int]
    drawn: Sequence[int]

    def children(self, node: int) -> list[int]:
        return [i for i in range(node + 1, len(self.parents)) if self.parents[i] == node]

    def path(self, node: int) -> list[int]:
        """The nodes from the root to `node`."""
        path = [node]
        while path[-1]:
            path.append(self.parents[path[-1]])
        return path[::-1]

    def children_first(self) -> list[int]:
        """All nodes, each after its children, and those in order."""
        order: list[int] = []
        stack = [0]
        while stack:
            order.append(node := stack.pop())
            stack += self.children(node)
        return order[::-1]


class Random(Protocol):
    """Where a verification gets its randomness from."""

    def accept(self, node: int, mass: float, bound: float) -> bool:
        """True with probability mass / bound (bound > 0): certainly where mass >= bound, never where mass is 0."""

    def token(self, node: int, weight: Tensor) -> int | None:
        """The token after `node`, drawn by weight [V] float64; None if there is no weight."""


class KeyedRandom:
    """The numbers of one step of a request."""

    def __init__(self, seed: int, stream: int, step: int) -> None:
        self._key = seed, stream, step

    def accept(self, node: int, mass: float, bound: float) -> bool:
        return noise.uniform(*self._key, node, noise.ACCEPT) * bound < mass

    def token(self, node: int, weight: Tensor) -> int | None:
        return categorical(weight, noise.uniform(*self._key, node, noise.EXTRA))


class Residual:
    """What is still to be delivered through one node that was handed a: m, of mass A; the node has failed so far with Phi."""

    def __init__(
        self, target: Tensor, draft: Tensor | None, a: float, children: Sequence[tuple[int, int]]
    ) -> None:
        """Weights [V] float64 of the target and the draft; token and kind of the children in order."""
        self.a, self.A, self.rho, self.alpha = a, a, 0.0, a / lane_sum(target).item()
        self.fixed = [token for token, kind in children if kind == DETERMINISTIC]
        self.p = target.clone()
        self.q = torch.zeros_like(target) if draft is None else draft.clone()
        self.q[self.fixed] = 0.0
        self.untried = self.q.clone()

    @property
    def phi(self) -> float:
        return (1.0 - self.a) + self.A

    def m(self) -> Tensor:
        return (self.alpha * self.p - self.rho * self.q).clamp(min=0.0)

    def offer(self, token: int, kind: int) -> tuple[float, float]:
        """(mass, bound): the child may be accepted with mass of bound; bound 0: its own law cannot give it."""
        bound = self.phi
        if kind != DETERMINISTIC:
            weight = self.untried[token].item()
            bound = self._scale() * weight if weight > 0 else 0.0
        return self.m()[token].item(), bound

    def fail(self, token: int, kind: int) -> None:
        """The child was looked at and refused."""
        if kind != DETERMINISTIC and self.untried[token] == 0:
            return
        before = self.p[token].item(), self.rho
        if kind == DETERMINISTIC:
            self.p[token] = 0.0
        else:
            self.rho += self._scale()
        mass = self._mass()
        if mass > 0 or self.a < 1:
            self.A = mass
        else:  # the child could not have failed: its probability was rounded
            self.p[token], self.rho = before
        if kind == WITHOUT_REPLACEMENT:
            self.untried[token] = 0.0

    def _scale(self) -> float:
        return self.phi / lane_sum(self.untried).item()

    def _mass(self) -> float:
        m = self.m()
        fixed = m[self.fixed].tolist()  # 0 where the child has failed
        m[self.fixed] = 0.0
        mass = lane_sum(m).item()
        for child in reversed(fixed):
            mass += child
        return mass


def verify(
    tree: Tree, target: Weights, draft: DraftWeights, walk: str, random: Random
) -> tuple[int, int | None]:
    """The last node of the accepted path and the token after it (None: the node's row has no law).

    target(node) and draft(node) are the weights [V] float64 of the node's laws; draft(node) may be None.
    """
    if walk == "target":
        return _target_walk(tree, target, random)
    if walk == "top_down":
        return _top_down(tree, target, draft, random)
    return _traversal(tree, target, draft, random)


def _target_walk(tree: Tree, target: Weights, random: Random) -> tuple[int, int | None]:
    node = 0
    while True:
        token = random.token(node, target(node))
        child = next((i for i in tree.children(node) if tree.tokens[i] == token), None)
        if child is None:
            return node, token
        node = child


def _residual(tree: Tree, node: int, a: float, target: Tensor, draft: Tensor | None) -> Residual | None:
    """None where the row has no law."""
    children = [(tree.tokens[i], tree.drawn[i]) for i in tree.children(node)]
    return Residual(target, draft, a, children) if target.any() else None


def _top_down(tree: Tree, target: Weights, draft: DraftWeights, random: Random) -> tuple[int, int | None]:
    node = 0
    while True:
        left = _residual(tree, node, 1.0, target(node), draft(node))
        if left is None:
            return node, None
        for child in tree.children(node):
            mass, bound = left.offer(tree.tokens[child], tree.drawn[child])
            if bound > 0 and random.accept(child, mass, bound):
                node = child
                break
            left.fail(tree.tokens[child], tree.drawn[child])
        else:
            return node, random.token(node, left.m())


def _traversal(tree: Tree, target: Weights, draft: DraftWeights, random: Random) -> tuple[int, int | None]:
    handed, states = hand_down(tree, target, draft)
    for node in tree.children_first():
        state, a = states[node], handed[node]
        mass = a if state is None else state.A
        if node == 0 or (mass > 0 and random.accept(node, mass, (1.0 - a) + mass)):
            return node, None if state is None else random.token(node, state.m())
    raise AssertionError("the root comes last and is accepted")


def hand_down(tree: Tree, target: Weights, draft: DraftWeights) -> tuple[list[float], list[Residual | None]]:
    """What each node is handed, and its state after all its children have failed (None: handed 0, or its row has no law)."""
    handed = [1.0] + [0.0] * (len(tree.tokens) - 1)
    states: list[Residual | None] = []
    for node, a in enumerate(handed):  # parents come first
        state = _residual(tree, node, a, target(node), draft(node)) if a > 0 else None
        states.append(state)
        if state is None:
            continue
        for child in tree.children(node):
            mass, bound = state.offer(tree.tokens[child], tree.drawn[child])
            c = min(1.0, mass / bound) if bound > 0 else 0.0
            handed[child] = c if c >= pipeline.TINY else 0.0
            state.fail(tree.tokens[child], tree.drawn[child])
    return handed, states
