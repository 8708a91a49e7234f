# SPDX-License-Identifier: Apache-2.0
"""One tree from the trees of several drafts, with what each of them promises.

At a node that several drafts know, the same child from two of them is likelier than from either: the union fails only if both do,
1 - (1 - c1)(1 - c2) for their probabilities given the parent. Siblings exclude each other, so where they then sum to more than 1 they
are scaled down to 1. A child is never less likely than the likeliest draft says unless siblings are scaled. The drafts are not
independent, so this is a guess: the planner calibrates it, as any draft's, under the name of the combination.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .token_tree import MAX_NODES, Drawn, TokenTree

MERGEABLE = (Drawn.DETERMINISTIC, Drawn.SHARED_NOISE)


def merge_drafts(
    trees: Sequence[TokenTree], path_probabilities: Sequence[NDArray[np.float32]], budget: int = MAX_NODES
) -> tuple[TokenTree, NDArray[np.float32]]:
    """The likeliest `budget` nodes of the union, likeliest first, and their path probabilities (float32 [T]).

    trees: at least one, with the same root token, drawn deterministic or shared_noise (a union of other drawings follows no rule that a
    verifier knows); a union with a tree of shared noise is one. path_probabilities[i] float32 [T_i] of trees[i]: 1 at the root, never
    above the parent's; calibrated ones (Planner.estimate) make the order that of acceptance.
    """
    if not trees or len(trees) != len(path_probabilities):
        found = f"{len(trees)} and {len(path_probabilities)}"
        raise ValueError(f"merge_drafts: trees must be at least one, with probabilities each, got {found}")
    if not 1 <= budget <= MAX_NODES:
        raise ValueError(f"merge_drafts: budget must be in [1, {MAX_NODES}], got {budget}")
    root = int(trees[0].tokens[0])
    tokens, parents, misses = (
        [root],
        [-1],
        [0.0],
    )  # misses: probability that no draft's promise of this node holds
    child_of: dict[tuple[int, int], int] = {}
    for i, (tree, path) in enumerate(zip(trees, path_probabilities, strict=True)):
        if tree.drawn not in MERGEABLE or tree.tokens[0] != root:
            found = f"root {tree.tokens[0]}, {tree.drawn.value} in trees[{i}]"
            raise ValueError(
                f"merge_drafts: trees must have root {root}, be deterministic or shared_noise, got {found}"
            )
        if path.shape != tree.tokens.shape:
            raise ValueError(
                f"merge_drafts: path_probabilities[{i}] must be [{len(tree)}], got {list(path.shape)}"
            )
        place, likely = [0], path.tolist()
        for node, (token, parent) in enumerate(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)):
            if not node:
                continue
            key = (place[parent], token)
            if key not in child_of:
                child_of[key] = len(tokens)
                tokens.append(token)
                parents.append(key[0])
                misses.append(1.0)
            merged = child_of[key]
            place.append(merged)
            given = likely[node] / likely[parent] if likely[parent] > 0 else 0.0
            misses[merged] *= 1.0 - min(max(given, 0.0), 1.0)
    total = [0.0] * len(tokens)
    for node in range(1, len(tokens)):
        total[parents[node]] += 1.0 - misses[node]
    scores = [1.0] * len(tokens)
    for node in range(1, len(tokens)):  # a parent has a lower index than its children
        parent = parents[node]
        scores[node] = scores[parent] * (1.0 - misses[node]) / max(1.0, total[parent])
    order = sorted(range(len(tokens)), key=lambda node: -scores[node])[:budget]  # stable: parents first
    place_of = {node: i for i, node in enumerate(order)}
    links = [-1] + [place_of[parents[node]] for node in order[1:]]
    shared = any(tree.drawn is Drawn.SHARED_NOISE for tree in trees)
    merged_tree = TokenTree(
        np.array([tokens[node] for node in order], dtype=np.int32),
        np.array(links, dtype=np.int32),
        Drawn.SHARED_NOISE if shared else Drawn.DETERMINISTIC,
        any(tree.pruned for tree in trees) or len(order) < len(tokens),
    )
    return merged_tree, np.array([scores[node] for node in order], dtype=np.float32)
