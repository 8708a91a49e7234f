# SPDX-License-Identifier: Apache-2.0
"""The suffix index in plain Python: the judge of the compiled one (bit-equal), and what runs without it.

The index remembers where every run of tokens occurred. A proposal finds the earlier occurrences of the
longest suffix of the context, and of shorter ones, and follows all of them at once, best first:

    m(o)        tokens that match before occurrence o, min_match to max_match
    w(o, d)     = min(m(o) + d, max_match) ** 2: weight of o at depth d, where d more tokens have matched
    W(n)        = sum of w(o, depth(n)) over the occurrences that follow the path to node n
    P(c | n)    = W_c / (W(n) + escape), W_c being the part of W(n) that goes on with c's token
    P(path)     = product of P(c | n) along the path

Counts are the weights (equal occurrences add up), a long match outweighs short ones, and the escape is the
caution: one occurrence of one token promises 1/(1 + escape), longer and repeated ones come near 1. Square and
escape were chosen on code and prose, where predictions then agree with acceptance within 0.1. An occurrence
that reaches the end of the text goes on with the root and the path itself: loops are drafted whole.
"""

from __future__ import annotations

import heapq
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LONGER_GRAMS = (3, 8)  # occurrences that match this far are found however many shorter ones are newer
ESCAPE = 8  # in units of weight
SEPARATOR = -1


class SuffixIndex:
    """Occurrences of token runs in the documents of one request; the last document grows.

    min_match       tokens an occurrence must match, 1 to 16
    max_match       tokens compared, min_match to 64
    max_candidates  newest occurrences looked at, of each class of length (min_match.., 3.., 8..), 1 to 4096
    max_tokens      when the text grows beyond it, its older half is forgotten; at least 16
    """

    def __init__(
        self, min_match: int = 1, max_match: int = 32, max_candidates: int = 64, max_tokens: int = 1 << 20
    ) -> None:
        self.min_match = _checked("min_match", min_match, 1, 16)
        self.max_match = _checked("max_match", max_match, min_match, 64)
        self.max_candidates = _checked("max_candidates", max_candidates, 1, 4096)
        self.max_tokens = _checked("max_tokens", max_tokens, 16, 1 << 30)
        self._text: list[int] = []
        self._sizes = (min_match, *(size for size in LONGER_GRAMS if min_match < size <= max_match))
        self._ends: list[dict[tuple[int, ...], list[int]]] = [{} for _ in self._sizes]  # oldest first

    def __len__(self) -> int:
        """Tokens and separators held."""
        return len(self._text)

    def copy(self) -> SuffixIndex:
        """An independent index with the same documents."""
        other = SuffixIndex(self.min_match, self.max_match, self.max_candidates, self.max_tokens)
        for token in self._text:
            other._push(token)
        return other

    def append(self, tokens: Sequence[int] | NDArray[np.int32]) -> None:
        """Appends tokens (ids >= 0, int32) to the last document; nothing is appended if one is invalid."""
        if isinstance(tokens, np.ndarray) and tokens.ndim != 1:
            raise ValueError(
                f"SuffixIndex.append: tokens must be one-dimensional, got {tokens.ndim} dimensions"
            )
        ids = [operator.index(token) for token in tokens]
        for i, token in enumerate(ids):
            if not 0 <= token < 2**31:
                found = f"tokens[{i}] = {token}"
                raise ValueError(f"SuffixIndex.append: tokens must be in [0, 2**31), got {found}")
        for token in ids:
            self._push(token)

    def end_document(self) -> None:
        """Starts another document; matches and continuations never cross the boundary."""
        self._push(SEPARATOR)

    def propose(
        self, root: int, budget: int, max_depth: int = 32, min_probability: float = 0.02
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        """(tokens, parents, path probabilities) of a tree of continuations of the last document and `root`.

        At most `budget` nodes (1 to 1024) no deeper than `max_depth` (0 to 1024), each with path probability
        >= `min_probability` (0 to 1); likeliest first. Node 0 is `root`, with probability 1.
        """
        _checked("root", root, 0, 2**31 - 1, ".propose")
        _checked("budget", budget, 1, 1024, ".propose")
        _checked("max_depth", max_depth, 0, 1024, ".propose")
        if not 0 <= min_probability <= 1:
            raise ValueError(
                f"SuffixIndex.propose: min_probability must be in [0, 1], got {min_probability:g}"
            )
        tokens, parents, depths, scores = [root], [-1], [0], [1.0]
        followers = [self._occurrences(root)]
        heap: list[tuple[float, int, int, int, list[tuple[int, int]]]] = []
        pushed = 0
        node = 0
        while True:
            if depths[node] < max_depth:
                pairs, total = self._children(node, tokens, parents, depths, followers[node])
                for token, weight, occurrences in pairs:
                    score = scores[node] * (weight / (total + ESCAPE))
                    if score >= min_probability:
                        heapq.heappush(heap, (-score, pushed, node, token, occurrences))
                        pushed += 1
            if not heap or len(tokens) == budget:
                break
            score, _, parent, token, occurrences = heapq.heappop(heap)
            node = len(tokens)
            tokens.append(token)
            parents.append(parent)
            depths.append(depths[parent] + 1)
            scores.append(-score)
            followers.append(occurrences)
        return (
            np.array(tokens, dtype=np.int32),
            np.array(parents, dtype=np.int32),
            np.array(scores, dtype=np.float32),
        )

    def _push(self, token: int) -> None:
        if len(self._text) >= self.max_tokens:
            kept = self._text[-(self.max_tokens // 2) :]
            self._text, self._ends = [], [{} for _ in self._sizes]
            for old in kept:
                self._push(old)
        self._text.append(token)
        for size, ends in zip(self._sizes, self._ends, strict=True):
            gram = tuple(self._text[-size:])
            if len(gram) == size and SEPARATOR not in gram:
                ends.setdefault(gram, []).append(len(self._text))

    def _occurrences(self, root: int) -> list[tuple[int, int]]:
        """(end, match length) of occurrences of the context's suffixes: longest class, then newest first."""
        context = [*self._text[-self.max_match :], root]
        found = []
        least_found = self.max_match + 1
        for size, ends in zip(reversed(self._sizes), reversed(self._ends), strict=True):
            for end in reversed(ends.get(tuple(context[-size:]), ())[-self.max_candidates :]):
                match = self._match(end, context)
                if match < least_found:
                    found.append((end, match))
            least_found = size
        return found

    def _match(self, end: int, context: list[int]) -> int:
        """How many tokens before `end` equal the end of the context."""
        limit = min(end, len(context), self.max_match)
        match = 0
        while match < limit and self._text[end - 1 - match] == context[-1 - match] != SEPARATOR:
            match += 1
        return match

    def _children(
        self,
        node: int,
        tokens: list[int],
        parents: list[int],
        depths: list[int],
        occurrences: list[tuple[int, int]],
    ) -> tuple[list[tuple[int, int, list[tuple[int, int]]]], int]:
        """(token, weight, occurrences) of each continuation, heaviest then newest first; and the total."""
        depth = depths[node]
        path = [node]
        while parents[path[-1]] >= 0:
            path.append(parents[path[-1]])
        path.reverse()
        groups: dict[int, list[tuple[int, int]]] = {}
        weights: dict[int, int] = {}
        total = 0
        for end, match in occurrences:
            at = end + depth
            token = self._text[at] if at < len(self._text) else tokens[path[at - len(self._text)]]
            if token == SEPARATOR:
                continue
            weight = min(match + depth, self.max_match) ** 2
            total += weight
            groups.setdefault(token, []).append((end, match))
            weights[token] = weights.get(token, 0) + weight
        pairs = [(token, weights[token], groups[token]) for token in groups]
        pairs.sort(key=lambda pair: -pair[1])
        return pairs, total


def _checked(argument: str, value: int, low: int, high: int, method: str = "") -> int:
    if not low <= value <= high:
        raise ValueError(f"SuffixIndex{method}: {argument} must be in [{low}, {high}], got {value}")
    return value
