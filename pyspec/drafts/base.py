# SPDX-License-Identifier: Apache-2.0
"""What every draft is: it follows the requests' texts and proposes a token tree for each, all requests of a step in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pyspec.trees import TokenTree
from pyspec.trees.acceptance import Predictions

if TYPE_CHECKING:
    from torch import Tensor


CERTAIN = np.ones(1, dtype=np.float32)  # path_probability of a root alone
CERTAIN.flags.writeable = False


class DrawnRows(NamedTuple):
    """What a tree's children were drawn from: for verifiers that use draft probabilities.

    rows         f32 [R, V]: logits over the target's vocabulary, as draw_children had them
    row_of       int32 [T]: the row that each node's children were drawn from, -1 for a node without drawn children
    temperature  of the draws
    """

    rows: Tensor
    row_of: NDArray[np.int32]
    temperature: float


@dataclass(frozen=True, eq=False)
class Proposal:
    """A tree, best nodes first, with how likely the draft thinks each node is to be accepted.

    path_probability is float32 [T]: the estimated probability that the target takes the whole path to the
    node, 1 at the root, never increasing with the index (so never above the parent's): `tree.prefix(n)` keeps
    the n likeliest nodes. drawn: of trees drawn with fresh randomness, whose nodes come in the order drawn instead.
    """

    tree: TokenTree
    path_probability: NDArray[np.float32]
    drawn: DrawnRows | None = None

    @cached_property
    def predictions(self) -> Predictions:
        """The nodes as calibration sees them."""
        return Predictions(self.tree.links, self.path_probability)

    @staticmethod
    def root(token: int) -> Proposal:
        """The proposal of nothing: a root alone."""
        return Proposal(TokenTree.root(token), CERTAIN)

    def prefix(self, num_nodes: int) -> Proposal:
        """The first, that is the likeliest, `num_nodes` nodes (>= 1)."""
        if num_nodes >= len(self.tree):
            return self
        part = Proposal(self.tree.prefix(num_nodes), self.path_probability[:num_nodes], self.drawn)
        if "predictions" in self.__dict__:
            part.__dict__["predictions"] = self.predictions.first(num_nodes)
        return part


class Failure(NamedTuple):
    """Instead of a proposal: why the draft has none for this request in this step."""

    reason: str


class Law(NamedTuple):
    """How the target samples a request: what a draft needs to know the noise of the verification."""

    temperature: float = 0.0
    seed: int = 0
    stream: int = 0


class DraftState(Protocol):
    """What a draft keeps of one request."""

    def extend(self, tokens: Sequence[int], features: Tensor | None = None) -> None:
        """Committed tokens, each exactly once and in order: first the prompt, in one piece or in chunks, then what steps accept,
        which may be told for several steps at once, before the next proposal.

        features: f32 [len(tokens), taps * hidden] for a draft with taps: the target's residual stream at these tokens, valid
        during the call.
        """

    def close(self) -> None:
        """Give back what the state holds. May be called twice; nothing else is called after it."""


class Draft(Protocol):
    """A way of drafting.

    name: of few letters, for statistics. taps: layers of the target whose input it reads (see pyspec.models.decoder), () for none.
    levels: forwards of a model in the last call of `propose`.
    """

    name: str
    taps: tuple[int, ...]
    levels: int

    def start(self, law: Law, max_tokens: int) -> DraftState:
        """The state of a new request whose text will have at most max_tokens tokens. Pages are taken when tokens come."""

    def propose(
        self,
        states: Sequence[DraftState],
        roots: Sequence[int],
        budgets: Sequence[int],
        min_gain: float = 0.0,
    ) -> Sequence[Proposal | Failure]:
        """For each request a tree of at most budgets[i] nodes (2 to 1024) below roots[i], the emitted token that is not committed.

        The root alone where the draft has nothing to say. Does not change what a state knows of the text. min_gain: accepted tokens
        that one more forward of the draft's model must promise.
        """

    def nbytes(self) -> int:
        """Memory of its own, in bytes."""


class HostState(Protocol):
    """The state of a draft that needs nothing but the text, and proposes for one request at a time."""

    def extend(self, tokens: Sequence[int]) -> None: ...

    def propose(self, root: int, budget: int) -> Proposal: ...


class HostDraft(Protocol):
    """A draft of one request at a time."""

    def start(self, prompt: Sequence[int]) -> HostState: ...


class _PerRequestState:
    """A host state as a DraftState."""

    def __init__(self, state: HostState) -> None:
        self.inner: HostState | None = state

    def extend(self, tokens: Sequence[int], features: Tensor | None = None) -> None:
        assert self.inner is not None, "extended after close"
        self.inner.extend(tokens)

    def close(self) -> None:
        self.inner = None


class PerRequest:
    """A host draft behind the interface of all drafts. What one state raises fails its request alone."""

    taps: tuple[int, ...] = ()
    levels = 0

    def __init__(self, name: str, draft: HostDraft) -> None:
        self.name, self._draft = name, draft

    def start(self, law: Law, max_tokens: int) -> DraftState:
        return _PerRequestState(self._draft.start(()))

    def propose(
        self,
        states: Sequence[DraftState],
        roots: Sequence[int],
        budgets: Sequence[int],
        min_gain: float = 0.0,
    ) -> list[Proposal | Failure]:
        proposals: list[Proposal | Failure] = []
        for state, root, budget in zip(states, roots, budgets, strict=True):
            try:
                proposals.append(state.inner.propose(root, budget))  # type: ignore[attr-defined]
            except Exception as error:
                proposals.append(Failure(reason_of(error)))
        return proposals

    def nbytes(self) -> int:
        """Texts are counted as nothing: a few bytes a token."""
        return 0


def reason_of(error: Exception) -> str:
    """One line of at most 200 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def check_proposal(proposal: object, root: int, budget: int, vocab_size: int) -> str:
    """Why a proposal cannot be verified, or "": its types, sizes, tokens, parents and probabilities."""
    if not isinstance(proposal, Proposal) or not isinstance(proposal.tree, TokenTree):
        return f"proposal must be a Proposal with a TokenTree, got {type(proposal).__name__}"
    tokens, parents, probability = proposal.tree.tokens, proposal.tree.parents, proposal.path_probability
    for name, array, dtype in (
        ("tokens", tokens, np.int32), ("parents", parents, np.int32), ("path_probability", probability, np.float32),
    ):  # fmt: skip
        if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != (len(tokens),):
            found = (
                f"{array.dtype} {list(array.shape)}"
                if isinstance(array, np.ndarray)
                else type(array).__name__
            )
            return f"{name} must be {np.dtype(dtype)} [{len(tokens)}], got {found}"
    count = len(tokens)
    if not 1 <= count <= budget:
        return f"tree must have 1 to {budget} nodes, got {count}"
    if tokens[0] != root or parents[0] != -1:
        return f"tree must begin with its root {root}, got token {tokens[0]} below {parents[0]}"
    if count == 1:
        return ""
    ids = tokens.tolist()
    if min(ids) < 0 or max(ids) >= vocab_size:
        bad = tokens[(tokens < 0) | (tokens >= vocab_size)][0]
        return f"tokens must be in [0, {vocab_size}), got {bad}"
    links, likely = proposal.tree.links, probability.tolist()
    if any(not 0 <= parent < node for node, parent in enumerate(links) if node):
        return "parents must lie before their children, got others"
    if not (min(likely) >= 0 and max(likely) <= 1 and math.isfinite(sum(likely))):  # NaN is in no order
        return "path_probability must be in [0, 1], got others"
    if proposal.drawn is None and likely != sorted(likely, reverse=True):
        return "path_probability must not rise with the index, got others"
    return ""
