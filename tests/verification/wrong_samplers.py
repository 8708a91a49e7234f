# SPDX-License-Identifier: Apache-2.0
"""Samplers that look right and are not, each wrong in one thing: what tests of exactness must reject.

Written anew on laws as float64 tensors; children are drawn without replacement unless said otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from enumeration import (
    Context,
    Fork,
    Laws,
    Verifier,
    by_value,
    contexts,
    continued,
    distance,
    joint,
    outcomes,
)
from scipy.integrate import quad
from torch import Tensor

from pyspec.spec.rejection import Tree


def ratio(mass: float, q: float) -> float:
    return 0.0 if mass <= 0 or q <= 0 else min(1.0, mass / q)


def left_over(a: float, p: Tensor, q: Tensor) -> tuple[float, Tensor]:
    """What a node has to deliver after a child drawn by q has failed: the mass and the law."""
    r = (a * p - q).clamp(min=0.0)
    mass = float(r.sum())
    return (mass / (mass + (1 - a)), r / mass) if mass > 0 else (0.0 if a < 1 else 1.0, p)


def without(law: Tensor, tokens: list[int]) -> Tensor | None:
    w = law.clone()
    w[tokens] = 0.0
    return w / w.sum() if w.any() else None


def likeliest(law: Tensor, keep: int) -> Tensor:
    return without(law, by_value(law)[keep:].tolist())


def top_down(p: Laws, q: Laws, defect: str, seen: Callable[[Tensor], Tensor] = lambda w: w) -> Verifier:
    """Rejection from the root downwards; `seen` is what it takes for the law that was drawn from."""

    def run(tree: Tree, fork: Fork) -> tuple[Context, Tensor]:
        at, node = contexts(tree), 0
        while True:
            residuals, tried, below, accepted = [p[at[node]]], [], 0.0, None
            for child in tree.children(node):
                x, law = tree.tokens[child], without(seen(q[at[node]]), tried)
                if law is None:
                    break
                chance = ratio(float(residuals[0 if defect == "not_updated" else -1][x]), float(law[x]))
                if defect == "shared_uniform":  # its value is known to be above `below`
                    chance, below = (
                        max(0.0, chance - below) / (1 - below) if below < 1 else chance,
                        max(below, chance),
                    )
                if fork.happens(chance):
                    accepted = child
                    break
                residuals.append(left_over(1.0, residuals[-1], law)[1])
                tried.append(x)
            if accepted is None:
                return at[node], after_the_path(defect, residuals, tried, p, at[node])
            node = accepted

    return run


def after_the_path(
    defect: str, residuals: list[Tensor], tried: list[int], p: Laws, context: Context
) -> Tensor:
    """The law of the token after the path."""
    if defect == "extra_from_p":
        return residuals[0]
    if defect == "extra_masked":
        law = without(residuals[0], tried)
        return residuals[0] if law is None else law
    if defect == "not_updated":
        return residuals[min(1, len(tried))]
    if defect == "parent_row" and context and not tried:
        return p[context[:-1]]
    return likeliest(residuals[-1], 2) if defect == "late_filter" else residuals[-1]


def traversal(p: Laws, q: Laws, defect: str) -> Verifier:
    """Post-order verification with one defect."""

    def run(tree: Tree, fork: Fork) -> tuple[Context, Tensor]:
        at = contexts(tree)

        def visit(node: int, a: float, product: float) -> tuple[Context, Tensor] | None:
            law, tried = p[at[node]], []
            for child in tree.children(node):
                x, drawn = tree.tokens[child], without(q[at[node]], tried)
                if drawn is None:
                    break
                new_product = product * float(law[x]) / max(float(drawn[x]), 1e-300)
                handed = (
                    min(1.0, new_product)
                    if defect == "product"
                    else ratio(a * float(law[x]), float(drawn[x]))
                )
                found = visit(child, handed, new_product)
                if found is not None:
                    return found
                if defect == "a_kept":
                    law = left_over(a, law, drawn)[1]
                elif defect == "unscaled":
                    share, law = left_over(1.0, law, drawn)
                    a *= share
                else:
                    a, law = left_over(a, law, drawn)
                tried.append(x)
            return (at[node], law) if node == 0 or fork.happens(a) else None

        found = visit(0, 1.0, 1.0)
        assert found is not None  # the root accepts
        return found

    return run


def block_ratios_forward(p: Laws, q: Laws) -> Verifier:
    """A chain: block verification's shares used as tests that stop at the first failure."""

    def run(tree: Tree, fork: Fork) -> tuple[Context, Tensor]:
        context: Context = ()
        a = 1.0
        for x in tree.tokens[1:]:
            share = ratio(a * float(p[context][x]), float(q[context][x]))
            if not fork.happens(share):
                return context, left_over(a, p[context], q[context])[1]
            context, a = (*context, x), share
        return context, p[context]

    return run


def threshold(p: Laws, least: float = 0.3) -> Verifier:
    """Accepts what the target finds likely enough."""

    def run(tree: Tree, fork: Fork) -> tuple[Context, Tensor]:
        at, node = contexts(tree), 0
        while True:
            likely = [i for i in tree.children(node) if p[at[node]][tree.tokens[i]] > least]
            if not likely:
                return at[node], p[at[node]]
            node = likely[0]

    return run


# ------------------------------------------------------------------------------------------- one noise used twice
def race(p: Tensor, q: Tensor) -> np.ndarray:
    """[x, y]: probability that argmax(log p + g) is x and argmax(log q + g) is y, for one Gumbel vector g."""
    p, q, n = p.numpy(), q.numpy(), len(p)
    both = np.zeros((n, n))
    for x, y in itertools.product(range(n), repeat=2):
        if p[x] <= 0 or q[y] <= 0:
            continue
        if x == y:
            both[x, x] = 1 / np.maximum(p / p[x], q / q[x]).sum()
            continue
        low, high = p[y] / p[x], np.inf if q[x] <= 0 else q[y] / q[x]
        if high <= low:
            continue
        others = [z for z in range(n) if z not in (x, y)]
        density = lambda r, x=x, y=y, others=others: (
            1 / (1 + r + sum(max(p[z] / p[x], q[z] * r / q[y]) for z in others)) ** 2
        )
        kinks = sorted(k for z in others if q[z] > 0 and low < (k := q[y] * p[z] / (q[z] * p[x])) < high)
        ends = [low, *kinks, high]
        both[x, y] = sum(
            quad(density, a, b, epsabs=1e-14, epsrel=1e-13)[0] for a, b in zip(ends, ends[1:], strict=False)
        )
    return both


def noise_of_the_draft_for_the_extra_token(p: Tensor, q: Tensor) -> float:
    """Total variation of one token, one child: the token after its refusal is drawn with the noise that drew the child."""
    residual = (p - q).clamp(min=0)
    both = torch.from_numpy(race(q, residual / residual.sum()))
    law = torch.minimum(p, q) + ((1 - p / q).clamp(min=0)[:, None] * both).sum(0)
    return distance(law, p)


def one_noise_for_two_positions(p: Laws) -> float:
    """Total variation of two tokens picked with the same noise."""
    first = p[()]
    return sum(
        distance(torch.from_numpy(race(first, p[(x,)])[x]), first[x] * p[(x,)]) for x in range(len(first))
    )


# --------------------------------------------------------------------------- randomness of a position used by two steps
def two_steps(verify: Callable[[Laws, Laws], Verifier], p: Laws, q: Laws, fresh: bool) -> float:
    """Total variation of three tokens over two steps: a chain of two, then one of one token at the second position.

    The draft's token there is the inverse of the distribution function at a uniform number, which the second step draws
    anew, or (fresh = False) uses again because it is keyed by the position.
    """
    vocab = len(p[()])
    ends = {round(float(c), 12) for x in range(vocab) for c in q[(x,)].cumsum(0)} | {0.0, 1.0}
    cuts = torch.tensor(sorted(c for c in ends if c <= 1), dtype=torch.float64)
    inside, chances = (cuts[1:] + cuts[:-1]) / 2, cuts.diff()
    invert = lambda law, u: min(int(torch.searchsorted(law.cumsum(0), u)), vocab - 1)

    def run(fork: Fork) -> tuple[Context, Tensor]:
        x, u = fork.draw(q[()]), inside[fork.draw(chances)]
        path, law = verify(p, q)(Tree((-1, x, invert(q[(x,)], u)), (-1, 0, 1), (0, 2, 2)), fork)
        if path:
            return path, law
        y = fork.draw(law)
        again = inside[fork.draw(chances)] if fresh else u
        below = [{c[1:]: w for c, w in laws.items() if c[:1] == (y,)} for laws in (p, q)]
        path, law = verify(*below)(Tree((-1, invert(q[(y,)], again)), (-1, 0), (0, 2)), fork)
        return (y, *path), law

    prefixes: dict[Context, Tensor] = {}
    for probability, (path, law) in outcomes(run):
        prefixes[path] = prefixes.get(path, 0.0) + probability * law
    return distance(continued(prefixes, p, 3), joint(p, 3))
