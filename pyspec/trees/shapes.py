# SPDX-License-Identifier: Apache-2.0
"""Static shapes: how many children each node of a tree has, fixed before any token is known.

A shape is a tuple of parents in level order (depth never falls), siblings adjacent and in order of rank: shape[0] == -1, the root.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .token_tree import MAX_NODES

Shape = tuple[int, ...]


def parse_shape(text: str) -> Shape:
    """The shape that `text` names.

    "4-2-1"       every node of depth 0, 1, 2 has 4, 2, 1 children: 21 nodes with the root
    "chain5"      five draft tokens, one below the other
    "-1,0,0,1"    parents, in any order of nodes

    ValueError for anything else and for shapes of more than 1024 nodes.
    """
    text = text.strip()
    if match := re.fullmatch(r"chain(\d{1,4})", text):
        return balanced_shape([1] * int(match[1]))
    if re.fullmatch(r"\d{1,4}(-\d{1,4})*", text):
        return balanced_shape([int(part) for part in text.split("-")])
    if re.fullmatch(r"-?\d{1,4}(\s*,\s*-?\d{1,4})*", text):
        return shape_of_parents([int(part) for part in text.split(",")])
    raise ValueError(f'parse_shape: text must be like "4-2-1", "chain5" or "-1,0,0,1", got {text!r}')


def balanced_shape(children: Sequence[int]) -> Shape:
    """The shape in which every node of depth d has children[d] children."""
    parents, level = [-1], [0]
    for count in children:
        if count < 1:
            raise ValueError(f"balanced_shape: children must be >= 1, got {count}")
        if len(parents) + len(level) * count > MAX_NODES:
            found = "-".join(map(str, children))
            raise ValueError(f"balanced_shape: children must give at most {MAX_NODES} nodes, got {found}")
        first = len(parents)
        parents += [node for node in level for _ in range(count)]
        level = list(range(first, len(parents)))
    return tuple(parents)


def shape_of_parents(parents: Sequence[int]) -> Shape:
    """The shape with these parents (one -1, the root; no cycle), its nodes put in level order, siblings kept in order."""
    if not 1 <= len(parents) <= MAX_NODES:
        raise ValueError(f"shape_of_parents: parents must have 1 to {MAX_NODES} nodes, got {len(parents)}")
    children: list[list[int]] = [[] for _ in parents]
    for node, parent in enumerate(parents):
        if not -1 <= parent < len(parents):
            raise ValueError(
                f"shape_of_parents: parents must be in [-1, {len(parents)}), got {parent} at {node}"
            )
        if parent >= 0:
            children[parent].append(node)
    roots = [node for node, parent in enumerate(parents) if parent == -1]
    if len(roots) != 1:
        raise ValueError(f"shape_of_parents: parents must be -1 for exactly one root, got {len(roots)} roots")
    order, shape = [roots[0]], [-1]
    for place, node in enumerate(order):  # grows while it is read: a breadth-first walk
        order += children[node]
        shape += [place] * len(children[node])
    if len(order) != len(parents):
        raise ValueError(
            f"shape_of_parents: parents must be acyclic, got {len(parents) - len(order)} nodes in cycles"
        )
    return tuple(shape)


def shape_depths(shape: Shape) -> list[int]:
    """The depth of every node."""
    depths = [0] * len(shape)
    for node in range(1, len(shape)):
        depths[node] = depths[shape[node]] + 1
    return depths


def shape_children(shape: Shape) -> list[list[int]]:
    """The children of every node, by rank."""
    children: list[list[int]] = [[] for _ in shape]
    for node in range(1, len(shape)):
        children[shape[node]].append(node)
    return children
