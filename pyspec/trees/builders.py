# SPDX-License-Identifier: Apache-2.0
"""Builders: best-first growth under a node budget, random trees, the union of trees, and parts of them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from .token_tree import MAX_NODES, Drawn, TokenTree, to_int32

Continuations = Callable[[tuple[int, ...]], Iterable[tuple[int, float]]]


def grow_best_first(
    root: int,
    continuations: Continuations,
    budget: int,
    *,
    max_depth: int = MAX_NODES,
    min_probability: float = 0.0,
    drawn: Drawn = Drawn.DETERMINISTIC,
) -> tuple[TokenTree, NDArray[np.float32]]:
    """The tree of the `budget` likeliest nodes, likeliest first, and their path probabilities (float32 [T]).

    continuations(path) gives (token, conditional probability in [0, 1]) after `path`, token ids that begin
    with the root. It is called once per kept node, in order, and only above `max_depth`. A node's probability
    is the product along its path; nodes of probability 0 or below `min_probability` are left out; ties go to
    the node offered first. No set of `budget` nodes that is closed under parents has a larger sum.
    """
    if not 1 <= budget <= MAX_NODES:
        raise ValueError(f"grow_best_first: budget must be in [1, {MAX_NODES}], got {budget}")
    tokens, parents, probabilities = [root], [-1], [1.0]
    paths: list[tuple[int, ...]] = [(root,)]
    heap: list[tuple[float, int, int, int]] = []
    offered = 0
    while True:
        node = len(tokens) - 1
        if len(paths[node]) <= max_depth:
            for token, probability in continuations(paths[node]):
                if not 0 <= probability <= 1:
                    found = f"{probability:g} for token {token}"
                    raise ValueError(f"grow_best_first: continuations must be in [0, 1], got {found}")
                score = probabilities[node] * probability
                if score > 0 and score >= min_probability:
                    heapq.heappush(heap, (-score, offered, node, token))
                    offered += 1
        if not heap or len(tokens) == budget:
            break
        score, _, parent, token = heapq.heappop(heap)
        tokens.append(token)
        parents.append(parent)
        probabilities.append(-score)
        paths.append((*paths[parent], token))
    name = "grow_best_first"
    tree = TokenTree(to_int32(name, "tokens", tokens), to_int32(name, "parents", parents), drawn)
    return tree, np.array(probabilities, dtype=np.float32)


def random_tree(
    num_nodes: int, vocab_size: int, seed: int, *, root: int | None = None, max_children: int = 4
) -> TokenTree:
    """A random tree: each node below a random earlier node with fewer than `max_children` children.

    Sibling tokens differ. The same arguments give the same tree. ValueError if `vocab_size` or `max_children`
    cannot hold `num_nodes`.
    """
    if not 1 <= num_nodes <= MAX_NODES:
        raise ValueError(f"random_tree: num_nodes must be in [1, {MAX_NODES}], got {num_nodes}")
    if not 1 <= max_children <= vocab_size:
        raise ValueError(f"random_tree: max_children must be in [1, {vocab_size}], got {max_children}")
    if root is not None and not 0 <= root < vocab_size:
        raise ValueError(f"random_tree: root must be in [0, {vocab_size}), got {root}")
    generator = np.random.default_rng(seed)
    tokens = [int(generator.integers(vocab_size)) if root is None else root]
    parents = [-1]
    below: list[set[int]] = [set()]
    for _ in range(num_nodes - 1):
        free = [node for node, children in enumerate(below) if len(children) < max_children]
        parent = free[int(generator.integers(len(free)))]
        token = int(generator.integers(vocab_size))
        while token in below[parent]:
            token = (token + 1) % vocab_size
        below[parent].add(token)
        below.append(set())
        tokens.append(token)
        parents.append(parent)
    return TokenTree(np.array(tokens, dtype=np.int32), np.array(parents, dtype=np.int32))


def merge_trees(trees: Sequence[TokenTree], max_nodes: int = MAX_NODES) -> TokenTree:
    """The union of trees with the same root token and the same drawing rule; shared prefixes become one.

    Nodes come level by level, earlier trees first; the first `max_nodes` are kept. The union of random
    drawings follows no rule that a verifier knows: only `deterministic` and `shared_noise` trees can be
    merged.
    """
    if not trees:
        raise ValueError("merge_trees: trees must hold at least one tree, got none")
    if max_nodes < 1:
        raise ValueError(f"merge_trees: max_nodes must be >= 1, got {max_nodes}")
    first = trees[0]
    for i, tree in enumerate(trees):
        if tree.drawn not in (Drawn.DETERMINISTIC, Drawn.SHARED_NOISE) or tree.drawn is not first.drawn:
            raise ValueError(
                f"merge_trees: trees must all be drawn deterministic or all shared_noise, "
                f"got {tree.drawn.value} in trees[{i}]"
            )
        if tree.tokens[0] != first.tokens[0]:
            raise ValueError(
                f"merge_trees: trees must have the root {first.tokens[0]} (from trees[0]), "
                f"got {tree.tokens[0]} in trees[{i}]"
            )
    tokens, parents = [int(first.tokens[0])], [-1]
    child_of: dict[tuple[int, int], int] = {}
    places = [{0: 0} for _ in trees]
    dropped = any(tree.pruned for tree in trees)
    for depth in range(1, max(tree.depth for tree in trees) + 1):
        for tree, place in zip(trees, places, strict=True):
            for node in np.flatnonzero(tree.depths == depth).tolist():
                parent = place.get(int(tree.parents[node]))
                key = (parent, int(tree.tokens[node])) if parent is not None else None
                if key is not None and key not in child_of and len(tokens) < max_nodes:
                    child_of[key] = len(tokens)
                    tokens.append(key[1])
                    parents.append(key[0])
                if key in child_of:
                    place[node] = child_of[key]
                else:
                    dropped = True
    links = np.array(parents, dtype=np.int32)
    return TokenTree(np.array(tokens, dtype=np.int32), links, first.drawn, dropped)


def prune(tree: TokenTree, keep: Sequence[int]) -> TokenTree:
    """The nodes of `tree` in `keep`, which must hold the root and every kept node's parent; marked pruned.

    Deterministic and shared-noise trees stay exact for every verifier that took them, others for the walks
    alone.
    """
    kept = sorted(set(keep))
    if not kept or kept[0] != 0 or kept[-1] >= len(tree):
        raise ValueError(f"prune: keep must hold the root and be < {len(tree)}, got {list(keep)}")
    place = {node: i for i, node in enumerate(kept)}
    parents = tree.parents.tolist()
    for node in kept[1:]:
        if parents[node] not in place:
            raise ValueError(f"prune: keep must hold every parent, got {node} without {parents[node]}")
    links = np.array([-1] + [place[parents[node]] for node in kept[1:]], dtype=np.int32)
    pruned = tree.pruned or len(kept) < len(tree)
    return TokenTree.unchecked(tree.tokens[kept], links, tree.drawn, pruned)
