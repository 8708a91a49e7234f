# SPDX-License-Identifier: Apache-2.0
"""Logits as a request wants them: its penalties, biases and masks as the arrays of `edit_logits`, a state for every node.

Of a request, what does not change is made once and what does is kept up token by token; a batch copies it side by side. A batch
without such a request does nothing here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from pyspec.drafts.base import Proposal
from pyspec.engine.grammar import GrammarState
from pyspec.engine.sampling_params import SamplingParams
from pyspec.trees.token_tree import TokenTree


class History:
    """The distinct tokens of a prompt (given ids) and an answer, and how often each is in the answer."""

    def __init__(self, prompt: Sequence[int]) -> None:
        known = list(dict.fromkeys(prompt))
        self._place = {token: i for i, token in enumerate(known)}
        self._data = np.zeros((2, max(64, 2 * len(known))), dtype=np.int32)
        self._data[0, : len(known)] = known

    def add(self, token: int) -> None:
        """Count an emitted token."""
        place = self._place.setdefault(token, len(self._place))
        if place == self._data.shape[1]:
            self._data = np.concatenate([self._data, np.zeros_like(self._data)], axis=1)
        self._data[0, place] = token
        self._data[1, place] += 1

    @property
    def tokens(self) -> NDArray[np.int32]:
        return self._data[0, : len(self._place)]

    @property
    def counts(self) -> NDArray[np.int32]:
        return self._data[1, : len(self._place)]


class RequestEdits:
    """What one request does to its logits. end_tokens are those that end its answer, masked before min_tokens."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        end_tokens: Collection[int],
        vocab_size: int,
        grammar: GrammarState | None,
    ) -> None:
        self.repetition = params.repetition_penalty
        self.presence, self.frequency = params.presence_penalty, params.frequency_penalty
        # Only the repetition penalty looks at the prompt, and without a penalty nothing is counted.
        self._prompt = prompt if self.repetition != 1 else ()
        self.history = History(self._prompt)
        self._counts = self.repetition != 1 or self.presence != 0 or self.frequency != 0
        bias = dict(params.logit_bias) | dict.fromkeys(params.banned_tokens, -np.inf)
        self.bias_tokens = np.fromiter(bias.keys(), dtype=np.int32, count=len(bias))
        self.bias = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
        self.grammar = grammar
        self._emitted = 0
        self._min_tokens = params.min_tokens if end_tokens else 0
        # Masks [words]; None: everything is allowed.
        self._late = None if params.allowed_tokens is None else _mask(vocab_size, params.allowed_tokens)
        not_ends = ~_mask(vocab_size, end_tokens)
        self._early = not_ends if self._late is None else self._late & not_ends

    def sibling(self) -> RequestEdits:
        """Those of another sample of the same request, before its first token; what never changes is shared."""
        other = copy(self)
        other.history = History(self._prompt)
        other.grammar = None if self.grammar is None else self.grammar.sibling()
        return other

    def extend(self, token: int) -> bool:
        """Take an emitted token that does not end the answer; True if the grammar allows nothing but the end behind it."""
        self._emitted += 1
        if self._counts:
            self.history.add(token)
        return self.grammar is not None and self.grammar.advance(token)

    def legal(self, proposal: Proposal) -> Proposal:
        """The proposal without what the grammar refuses: those nodes cannot be accepted. For trees that may be pruned."""
        if self.grammar is None or len(proposal.tree) == 1:
            return proposal
        tree = proposal.tree
        kept = self.grammar.legal(tree.tokens, tree.parents)
        if kept.all():
            return proposal
        place = np.cumsum(kept, dtype=np.int32) - 1
        parents = np.where(tree.parents < 0, -1, place[tree.parents])[kept]
        smaller = TokenTree.unchecked(tree.tokens[kept], parents.astype(np.int32), tree.drawn, True)
        return replace(proposal, tree=smaller, path_probability=proposal.path_probability[kept])

    @property
    def may_mask(self) -> bool:
        """Whether a node of the next tree can have a mask."""
        return self._emitted < self._min_tokens or self._late is not None or self.grammar is not None

    def masks(
        self, tokens: NDArray[np.int32], parents: NDArray[np.int32], out: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], int]:
        """Row of `out` [>= T, words] that holds each node's mask, -1 where it has none; and how many rows are used."""
        early = _depths(parents) < self._min_tokens - self._emitted
        fixed = [(self._early, early)] + ([] if self._late is None else [(self._late, ~early)])
        if self.grammar is not None:
            rows, used = self.grammar.masks(tokens, parents, out)
            for mask, nodes in fixed:
                out[np.unique(rows[nodes & (rows >= 0)])] &= mask
            return rows, used
        rows, used = np.full(len(tokens), -1, dtype=np.int32), 0
        for mask, nodes in fixed:
            if nodes.any():
                out[used], rows[nodes] = mask, used
                used += 1
        return rows, used


class BatchEdits:
    """The logits of a step as its requests want them. Arrays grow to what the largest step so far needed."""

    def __init__(self) -> None:
        self._requests: list[RequestEdits] = []
        self._arrays: dict[str, NDArray] = {}

    def fill(self, requests: Sequence[RequestEdits | None]) -> None:
        """Take the requests of a step; None: this one's logits stay as they are, or it has none."""
        self._requests = [edits or _NOTHING for edits in requests] if any(requests) else []

    @property
    def active(self) -> bool:
        """Whether a request of the step edits its logits."""
        return bool(self._requests)

    def arguments(self, vocab: int, tokens: Tensor, parents: Tensor, cu_t: Tensor) -> tuple[Any, ...] | None:
        """What edit_logits takes besides logits [R, V] at the nodes of the step's trees (as verify_tree takes them), on the host and
        valid until the next step; None if no request edits."""
        each = self._requests
        if not each:
            return None
        laws = [
            self._join(
                name, np.float32, [np.array([getattr(edits, name)], dtype=np.float32) for edits in each]
            )
            for name in ("repetition", "presence", "frequency")
        ]
        tokens_seen = [edits.history.tokens for edits in each]
        biases = [edits.bias for edits in each]
        return (
            tokens, parents, cu_t, *laws,
            self._join("history", np.int32, tokens_seen),
            self._join("history_count", np.int32, [edits.history.counts for edits in each]),
            self._offsets("cu_history", tokens_seen),
            self._join("bias_token", np.int32, [edits.bias_tokens for edits in each]),
            self._join("bias", np.float32, biases),
            self._offsets("cu_bias", biases),
            *self._masks(vocab, tokens.numpy(), parents.numpy(), cu_t.tolist()),
        )  # fmt: skip

    def _masks(
        self, vocab: int, tokens: NDArray[np.int32], parents: NDArray[np.int32], offsets: list[int]
    ) -> tuple[Tensor | None, Tensor]:
        """mask and mask_row."""
        nodes, words, used = len(tokens), -(-vocab // 32), 0
        masks = self._array("mask", np.int32, nodes * words).reshape(nodes, words)
        mask_row = self._array("mask_row", np.int32, nodes)
        mask_row[:] = -1
        for edits, begin, end in zip(self._requests, offsets, offsets[1:], strict=False):
            if begin < end and edits.may_mask:
                rows, count = edits.masks(tokens[begin:end], parents[begin:end], masks[used:])
                mask_row[begin:end] = np.where(rows >= 0, rows + used, -1)
                used += count
        return torch.from_numpy(masks[:used]) if used else None, torch.from_numpy(mask_row)

    def _join(self, name: str, dtype: DTypeLike, parts: list[NDArray]) -> Tensor:
        array = self._array(name, dtype, sum(map(len, parts)))
        return torch.from_numpy(np.concatenate(parts, out=array))

    def _offsets(self, name: str, parts: list[NDArray]) -> Tensor:
        array = self._array(name, np.int32, len(parts) + 1)
        array[0] = 0
        np.cumsum([len(part) for part in parts], out=array[1:])
        return torch.from_numpy(array)

    def _array(self, name: str, dtype: DTypeLike, size: int) -> NDArray:
        """The first `size` elements of a named array, which is replaced by a larger one where it is too small."""
        array = self._arrays.get(name)
        if array is None or len(array) < size:
            self._arrays[name] = array = np.zeros(
                max(size, 2 * len(array) if array is not None else 64), dtype
            )
        return array[:size]


def _mask(vocab_size: int, tokens: Collection[int]) -> NDArray[np.int32]:
    """Words in which the bits of `tokens` are 1."""
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[list(tokens)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def _depths(parents: NDArray[np.int32]) -> NDArray[np.int32]:
    """Edges between the root and each node."""
    depths = np.zeros(len(parents), dtype=np.int32)
    for node, parent in enumerate(parents.tolist()):
        if node:
            depths[node] = depths[parent] + 1
    return depths


_NOTHING = RequestEdits(SamplingParams(), (), (), 1, None)
