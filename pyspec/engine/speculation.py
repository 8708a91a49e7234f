# SPDX-License-Identifier: Apache-2.0
"""Which tree each request gets in each step: the draft's proposal, cut to the size that pays."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pyspec.drafts.base import Draft, DraftState, Proposal
from pyspec.drafts.ngram import NgramDraft
from pyspec.drafts.suffix import SuffixDraft
from pyspec.engine.request import Request
from pyspec.trees.builders import merge_trees, random_tree
from pyspec.trees.cost import Calibration, CostTable, choose_sizes

# A tree must promise this much more than plain decoding: the table leaves out drafting and the longer walk.
MARGIN = 0.1


class RequestDraft:
    """The draft of one request: its state, what its predictions have been worth, and whether cost decides."""

    def __init__(self, mode: str, state: DraftState) -> None:
        self.mode, self.state = mode, state
        self.calibration = Calibration()

    def extend(self, tokens: Sequence[int]) -> None:
        self.state.extend(tokens)


class Speculator:
    """Proposes trees for decoding requests and learns from what was accepted."""

    def __init__(self, mode: str, max_nodes: int, vocab_size: int, seed: int) -> None:
        self._mode, self._max_nodes, self._vocab_size = mode, max_nodes, vocab_size
        self._random = np.random.default_rng(seed)
        self._drafts: dict[str, Draft] = {}
        # Flat until measured: nodes up to the largest tree cost nothing more than one.
        self.table = CostTable((1,), (0,), ((1.0,),))

    def draft_for(self, mode: str | None, prompt: Sequence[int]) -> RequestDraft | None:
        """The draft of a new request (mode None: the engine's), or None for plain decoding."""
        mode = mode or self._mode
        if mode == "off":
            return None
        kind = "ngram" if mode == "ngram" else "suffix"
        if kind not in self._drafts:
            self._drafts[kind] = NgramDraft() if kind == "ngram" else SuffixDraft()
        return RequestDraft(mode, self._drafts[kind].start(prompt))

    def calibrate(self, step: Callable[[int, int], object], contexts: Sequence[int], key: str) -> None:
        """Measure seconds by nodes and context with step(nodes, context), or take them from the cache under `key`."""
        nodes = [
            n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024) if n <= self._max_nodes
        ]
        key = f"{platform.machine()} {platform.processor()} {key} nodes={nodes} contexts={list(contexts)}"
        self.table = CostTable.cached(key, lambda: CostTable.measure(step, nodes, contexts))

    def propose(self, requests: Sequence[Request]) -> dict[Request, Proposal]:
        """One tree per decoding request, the sizes of "auto" ones chosen together by expected tokens per second."""
        proposals = {request: self._proposal(request) for request in requests}
        auto = [r for r in requests if r.draft is not None and r.draft.mode == "auto"]
        if auto:
            sizes = choose_sizes(
                [proposals[r] for r in auto],
                self.table,
                [r.draft.calibration for r in auto if r.draft is not None],
                [r.kv_len for r in auto],
                MARGIN,
            )
            for request, size in zip(auto, sizes, strict=True):
                proposals[request] = proposals[request].prefix(size)
        return proposals

    def observe(self, request: Request, proposal: Proposal, path: NDArray[np.int32]) -> None:
        """Learn from one verified proposal: `path` are the accepted nodes, root first."""
        if request.draft is not None:
            request.draft.calibration.observe(proposal.path_probability, path.tolist())

    def _proposal(self, request: Request) -> Proposal:
        # A tree deeper than the room left would compute tokens that can never be emitted.
        budget = min(self._max_nodes, request.room)
        if request.draft is None or budget <= 1:
            return Proposal.root(request.root)
        proposal = request.draft.state.propose(request.root, budget)
        return self._randomised(proposal, budget) if request.draft.mode == "random" else proposal

    def _randomised(self, proposal: Proposal, budget: int) -> Proposal:
        """The draft's tree with random branches grown into it, of a random size: for tests of exactness."""
        size = int(self._random.integers(1, budget + 1))
        noise = random_tree(
            size, self._vocab_size, int(self._random.integers(2**31)), root=int(proposal.tree.tokens[0])
        )
        order = [proposal.tree, noise] if self._random.random() < 0.5 else [noise, proposal.tree]
        tree = merge_trees(order, budget)
        return Proposal(tree, np.full(len(tree), 1.0, dtype=np.float32))
