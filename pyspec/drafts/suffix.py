# SPDX-License-Identifier: Apache-2.0
"""SuffixDraft: trees of continuations of what the request has already said."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pyspec import env
from pyspec.trees import Drawn, TokenTree

from . import suffix_reference
from .base import Proposal


def load_host() -> tuple[Any, str]:
    """(the compiled module `pyspec._host` or None, why it is absent or "")."""
    if env.disable_extensions():
        return None, "PYSPEC_SPEC_ONLY=1"
    try:
        return importlib.import_module("pyspec._host"), ""
    except ImportError as error:
        return None, f"pyspec._host: {error}"


class SuffixDraft:
    """Token trees from the suffix index over prompt, output and optional reference texts (each a token list).

    max_depth        deepest node proposed
    min_probability  least path probability of a node
    options          min_match, max_match, max_candidates, max_tokens of the index: see suffix_reference.py

    `compiled` says whether the C++ index runs; if not, the bit-equal Python one does, and `fallback_reason`
    says why.
    """

    def __init__(
        self,
        *,
        references: Iterable[Sequence[int]] = (),
        max_depth: int = 32,
        min_probability: float = 0.02,
        **options: int,
    ) -> None:
        host, self.fallback_reason = load_host()
        self.compiled = host is not None
        self.max_depth = max_depth
        self.min_probability = min_probability
        self._index = (host or suffix_reference).SuffixIndex(**options)
        for text in references:
            self._index.append(as_tokens(text))
            self._index.end_document()
        self._index.propose(0, 1, max_depth, min_probability)  # refuses bad options before a request does

    def start(self, prompt: Sequence[int]) -> SuffixState:
        """The state of a request with this prompt; the references' index is copied, not rebuilt."""
        return SuffixState(self, self._index.copy(), prompt)


class SuffixState:
    """The suffix index of one request."""

    def __init__(self, draft: SuffixDraft, index: Any, prompt: Sequence[int]) -> None:
        self._draft = draft
        self._index = index
        self.extend(prompt)

    def extend(self, tokens: Sequence[int]) -> None:
        """Appends committed tokens; O(1) each, amortised."""
        self._index.append(as_tokens(tokens))

    def propose(self, root: int, budget: int) -> Proposal:
        """The likeliest continuations of the committed tokens and `root`."""
        tokens, parents, probability = self._index.propose(
            root, budget, self._draft.max_depth, self._draft.min_probability
        )
        return Proposal(TokenTree.unchecked(tokens, parents, Drawn.DETERMINISTIC), probability)


def as_tokens(tokens: Sequence[int]) -> np.ndarray:
    """int32 [n] of token ids; TypeError if they are not integers, ValueError if they do not fit."""
    array = np.asarray(tokens)
    if array.dtype == np.int32 or not array.size:
        return array.astype(np.int32, copy=False)
    if array.dtype.kind not in "iu":
        raise TypeError(f"SuffixState.extend: tokens must be integers, got {array.dtype}")
    if array.min() < 0 or array.max() >= 2**31:
        bad = array[(array < 0) | (array >= 2**31)][0]
        raise ValueError(f"SuffixState.extend: tokens must be in [0, 2**31), got {bad}")
    return array.astype(np.int32)
