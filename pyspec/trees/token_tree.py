# SPDX-License-Identifier: Apache-2.0
"""TokenTree: the immutable tree of draft tokens that one verification step looks at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_NODES = 1024
INT32_MAX = 2**31 - 1
_NO_PARENT, _NO_DEPTH = np.array((-1,), dtype=np.int32), np.zeros(1, dtype=np.int32)  # of a root alone
_NO_PARENT.flags.writeable = _NO_DEPTH.flags.writeable = False


class Drawn(Enum):
    """How the children of every node were drawn: what decides which verifiers are exact for the tree."""

    DETERMINISTIC = "deterministic"  # any rule without fresh randomness: top-k of q, counts of a suffix tree
    IID = "iid"  # independent draws from q; equal siblings are separate rounds
    WITHOUT_REPLACEMENT = "without_replacement"  # Gumbel-top-k, siblings in descending perturbed order
    HYBRID = "hybrid"  # first child drawn outside the top-(k-1) of q, then all of the top-(k-1)
    SHARED_NOISE = "shared_noise"  # top-k of log q + the target's own noise for the position


@dataclass(frozen=True, eq=False)
class TokenTree:
    """A tree of T tokens (1 <= T <= 1024) in topological order; a chain is a tree.

    Node 0 is the root: the last emitted token, whose KV is not in the cache yet. Siblings are in verification
    order, which is index order.

    tokens   int32 [T], ids >= 0
    parents  int32 [T], parents[0] == -1 and 0 <= parents[i] < i
    drawn    the drawing rule; equal sibling tokens are allowed for `iid` alone
    pruned   True if nodes were removed after drawing (not merely never drawn)

    Sequences of Python integers are accepted; arrays must be int32. Both arrays are copied and read-only.
    Raises TypeError for dtypes and ValueError for everything else, naming the first offending node.
    """

    tokens: NDArray[np.int32]
    parents: NDArray[np.int32]
    drawn: Drawn = Drawn.DETERMINISTIC
    pruned: bool = False

    def __post_init__(self) -> None:
        tokens = to_int32("TokenTree", "tokens", self.tokens)
        parents = to_int32("TokenTree", "parents", self.parents)
        if not isinstance(self.drawn, Drawn):
            raise TypeError(f"TokenTree: drawn must be a Drawn, got {self.drawn!r}")
        _check(tokens, parents, self.drawn)
        tokens.flags.writeable = False
        parents.flags.writeable = False
        object.__setattr__(self, "tokens", tokens)
        object.__setattr__(self, "parents", parents)

    @staticmethod
    def unchecked(
        tokens: NDArray[np.int32], parents: NDArray[np.int32], drawn: Drawn, pruned: bool = False
    ) -> TokenTree:
        """A tree of int32 arrays that are valid by construction and handed over: no copy and no check."""
        tokens.flags.writeable = False
        parents.flags.writeable = False
        tree = object.__new__(TokenTree)
        tree.__dict__.update(tokens=tokens, parents=parents, drawn=drawn, pruned=pruned)
        return tree

    @staticmethod
    def root(token: int) -> TokenTree:
        """The tree of one token: what plain decoding makes of every request in every step, so its other arrays are shared."""
        tokens = np.array((token,), dtype=np.int32)
        tokens.flags.writeable = False
        tree = object.__new__(TokenTree)
        tree.__dict__.update(
            tokens=tokens, parents=_NO_PARENT, drawn=Drawn.DETERMINISTIC, pruned=False, depths=_NO_DEPTH
        )
        return tree

    @classmethod
    def chain(cls, tokens: ArrayLike, drawn: Drawn = Drawn.DETERMINISTIC) -> TokenTree:
        """The chain root, first draft token, second draft token, ..."""
        tokens = to_int32("TokenTree.chain", "tokens", tokens)
        return cls(tokens, np.arange(-1, len(tokens) - 1, dtype=np.int32), drawn)

    @classmethod
    def from_parents(
        cls, tokens: ArrayLike, parents: ArrayLike, drawn: Drawn = Drawn.DETERMINISTIC
    ) -> TokenTree:
        """A tree of nodes in any order, stably sorted by depth; the root is the one node whose parent is -1.

        ValueError for cycles, no or several roots, and parents out of range.
        """
        name = "TokenTree.from_parents"
        token_array, parent_array = to_int32(name, "tokens", tokens), to_int32(name, "parents", parents)
        _check_sizes(name, token_array, parent_array)
        given = parent_array.tolist()
        num_nodes = len(given)
        if given.count(-1) != 1:
            raise ValueError(f"{name}: parents must be -1 for exactly one root, got {given.count(-1)} roots")
        for node, parent in enumerate(given):
            if not -1 <= parent < num_nodes:
                raise ValueError(_out_of_range(name, num_nodes, node, parent))
        children: list[list[int]] = [[] for _ in given]
        for node, parent in enumerate(given):
            if parent >= 0:
                children[parent].append(node)
        order = [given.index(-1)]
        for node in order:  # grows while it is read: a breadth-first walk
            order.extend(children[node])
        if len(order) != num_nodes:
            lost = min(set(range(num_nodes)).difference(order))
            raise ValueError(f"{name}: parents must be acyclic, got parents[{lost}] = {given[lost]}")
        place = {node: i for i, node in enumerate(order)}
        links = np.array([place.get(given[node], -1) for node in order], dtype=np.int32)
        return cls(token_array[order], links, drawn)

    @classmethod
    def from_paths(
        cls, root: int, paths: Iterable[Sequence[int]], drawn: Drawn = Drawn.DETERMINISTIC
    ) -> TokenTree:
        """The prefix tree of token paths below `root` (each without the root); shared prefixes become one."""
        tokens, parents = [root], [-1]
        child_of: dict[tuple[int, int], int] = {}
        for path in paths:
            node = 0
            for token in path:
                key = (node, token)
                if key not in child_of:
                    child_of[key] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = child_of[key]
        name = "TokenTree.from_paths"
        return cls(to_int32(name, "tokens", tokens), to_int32(name, "parents", parents), drawn)

    def __len__(self) -> int:
        return len(self.tokens)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenTree):
            return NotImplemented
        return (
            self.drawn is other.drawn
            and self.pruned == other.pruned
            and np.array_equal(self.tokens, other.tokens)
            and np.array_equal(self.parents, other.parents)
        )

    def __hash__(self) -> int:
        return hash((self.tokens.tobytes(), self.parents.tobytes(), self.drawn, self.pruned))

    @cached_property
    def links(self) -> list[int]:
        """parents as Python's own integers, for those who look at single nodes."""
        links: list[int] = self.parents.tolist()
        return links

    @cached_property
    def depths(self) -> NDArray[np.int32]:
        """int32 [T]: edges between the root and each node; a node's position is L + depth."""
        parents = self.links
        depths = [0] * len(parents)
        for i in range(1, len(parents)):
            depths[i] = depths[parents[i]] + 1
        result = np.array(depths, dtype=np.int32)
        result.flags.writeable = False
        return result

    @property
    def depth(self) -> int:
        """Edges on the longest path; 0 for a root alone."""
        return int(self.depths.max())

    @property
    def is_chain(self) -> bool:
        """True if every node's parent is the node before it."""
        return self.links == list(range(-1, len(self.links) - 1))

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Children of each node, in verification order."""
        children: list[list[int]] = [[] for _ in range(len(self))]
        for node, parent in enumerate(self.parents.tolist()[1:], start=1):
            children[parent].append(node)
        return tuple(map(tuple, children))

    @cached_property
    def paths(self) -> tuple[tuple[int, ...], ...]:
        """Node indices from the root to each leaf, leaves in index order."""
        return tuple(self.path(node) for node in range(len(self)) if not self.children[node])

    def path(self, node: int) -> tuple[int, ...]:
        """Node indices from the root to `node`, both included."""
        result = []
        while node >= 0:
            result.append(node)
            node = int(self.parents[node])
        return tuple(reversed(result))

    def ancestor_mask(self, num_words: int | None = None) -> NDArray[np.int64]:
        """int64 [T, num_words]: bit j % 64 of word j // 64 in row i is 1 if node j is i or an ancestor of i.

        `num_words` is at least ceil(T / 64), its default.
        """
        least = -(-len(self) // 64)
        words = least if num_words is None else num_words
        if words < least:
            raise ValueError(f"TokenTree.ancestor_mask: num_words must be >= {least}, got {words}")
        rows = [1]
        for i, parent in enumerate(self.parents.tolist()[1:], start=1):
            rows.append(rows[parent] | 1 << i)
        data = b"".join([row.to_bytes(8 * words, "little") for row in rows])
        return np.frombuffer(bytearray(data), dtype="<i8").reshape(len(rows), words)

    def prefix(self, max_nodes: int) -> TokenTree:
        """The first `max_nodes` nodes; `pruned` is set if any node is dropped."""
        if max_nodes < 1:
            raise ValueError(f"TokenTree.prefix: max_nodes must be >= 1, got {max_nodes}")
        if max_nodes >= len(self):
            return self
        return TokenTree.unchecked(self.tokens[:max_nodes], self.parents[:max_nodes], self.drawn, True)

    def subtree(self, node: int) -> TokenTree:
        """The tree below `node`, which becomes the root."""
        if not 0 <= node < len(self):
            raise ValueError(f"TokenTree.subtree: node must be in [0, {len(self)}), got {node}")
        parents = self.parents.tolist()
        place = {node: 0}
        for i in range(node + 1, len(parents)):
            if parents[i] in place:
                place[i] = len(place)
        kept = list(place)
        new_parents = np.array([-1] + [place[parents[i]] for i in kept[1:]], dtype=np.int32)
        return TokenTree.unchecked(self.tokens[kept], new_parents, self.drawn, self.pruned)


def to_int32(where: str, argument: str, values: ArrayLike) -> NDArray[np.int32]:
    """A new int32 array [n] of an int32 array or of a sequence of Python integers that fit.

    TypeError for another dtype, ValueError for another rank or an integer out of int32.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{where}: {argument} must be one-dimensional, got shape {list(array.shape)}")
    if isinstance(values, np.ndarray) and array.dtype != np.int32:
        raise TypeError(f"{where}: {argument} must be int32, got {array.dtype}")
    if array.size and array.dtype.kind != "i":
        raise TypeError(f"{where}: {argument} must be int32, got {array.dtype}")
    if array.dtype != np.int32 and array.size:
        extreme = max(int(array.max()), int(array.min()), key=abs)
        if abs(extreme) > INT32_MAX:
            raise ValueError(f"{where}: {argument} must fit int32, got {extreme}")
    return np.array(array, dtype=np.int32)


def _check_sizes(name: str, tokens: NDArray[np.int32], parents: NDArray[np.int32]) -> None:
    if len(tokens) != len(parents):
        raise ValueError(f"{name}: parents must have {len(tokens)} nodes (from tokens), got {len(parents)}")
    if not 1 <= len(tokens) <= MAX_NODES:
        raise ValueError(f"{name}: tokens must have 1 to {MAX_NODES} nodes, got {len(tokens)}")


def _out_of_range(name: str, num_nodes: int, node: int, parent: int) -> str:
    return f"{name}: parents must be -1 for the root and in [0, {num_nodes}), got parents[{node}] = {parent}"


def _check(tokens: NDArray[np.int32], parents: NDArray[np.int32], drawn: Drawn) -> None:
    """Raises for the first node that breaks the contract of TokenTree."""
    _check_sizes("TokenTree", tokens, parents)
    if tokens.min() < 0:
        node = int(np.argmax(tokens < 0))
        raise ValueError(f"TokenTree: tokens must be >= 0, got tokens[{node}] = {tokens[node]}")
    links = parents.tolist()
    num_nodes = len(links)
    if links[0] != -1:
        raise ValueError(f"TokenTree: parents must start with -1 (the root), got parents[0] = {links[0]}")
    for node in range(1, num_nodes):
        parent = links[node]
        if 0 <= parent < node:
            continue
        if not 0 <= parent < num_nodes:
            raise ValueError(_out_of_range("TokenTree", num_nodes, node, parent))
        above, steps = parent, 0
        while above not in (-1, node) and steps < num_nodes and 0 <= links[above] < num_nodes:
            above, steps = links[above], steps + 1
        rule = "acyclic" if above == node or steps == num_nodes else "sorted (parents[i] < i)"
        raise ValueError(f"TokenTree: parents must be {rule}, got parents[{node}] = {parent}")
    if drawn is not Drawn.IID:
        pairs = list(zip(links, tokens.tolist(), strict=True))
        if len(set(pairs)) != num_nodes:
            node = next(i for i in range(1, num_nodes) if pairs[i] in pairs[1:i])
            raise ValueError(
                f"TokenTree: tokens must differ between siblings of a tree drawn {drawn.value}, "
                f"got tokens[{node}] = {tokens[node]} again below node {links[node]}"
            )
