# SPDX-License-Identifier: Apache-2.0
"""Which tree each request gets in each step: what its drafts propose, checked, merged, and cut to the size that pays.

Mode "auto" asks drafts and cuts trees by what they cost and bring (pyspec/trees/planner.py); every other mode takes what they give.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyspec.drafts.base import Draft, Failure, Law, PerRequest, Proposal, check_proposal, reason_of
from pyspec.drafts.ngram import NgramDraft
from pyspec.drafts.suffix import SuffixDraft
from pyspec.engine.costs import sampling_kind
from pyspec.engine.draft_calls import call_draft, told
from pyspec.engine.drawn import unverifiable
from pyspec.engine.request import Request
from pyspec.engine.request_draft import RequestDraft
from pyspec.engine.sampling_params import SamplingParams
from pyspec.trees.builders import merge_trees, random_tree
from pyspec.trees.cost import CostTable
from pyspec.trees.merging import merge_drafts
from pyspec.trees.online import StepCost
from pyspec.trees.planner import Planner, RequestPlan
from pyspec.trees.policy import PRUNABLE
from pyspec.trees.request_plan import EMPTY, UNASKED
from pyspec.trees.token_tree import Drawn, TokenTree
from pyspec.trees.verifiers import VERIFIERS

ALWAYS = "every node that was drafted"


class Speculator:
    """Proposes trees for decoding requests and learns from what was accepted."""

    def __init__(
        self,
        mode: str,
        drafts: Sequence[Draft],
        max_nodes: int,
        vocab_size: int,
        seed: int,
        verifier: str = "shared_noise",
    ) -> None:
        """drafts: of modes that name none, in order of preference; suffix trees if there are none. verifier: of the trees."""
        self._verifier = verifier
        # Whether its walk looks at how no tree was drawn: then there is nothing to check.
        self._any_tree = not VERIFIERS[verifier].chains and VERIFIERS[verifier].walk in ("", "target")
        self._mode, self._max_nodes, self._vocab_size = mode, max_nodes, vocab_size
        self._random = np.random.default_rng(seed)
        self._named: dict[str, Draft] = {}
        self.drafts = tuple(drafts)
        self.taps = tuple(sorted({layer for draft in drafts for layer in draft.taps}))
        # Flat until measured: nodes up to the largest tree cost nothing more than one.
        self.planner = Planner(StepCost(CostTable((1,), (0,), ((1.0,),))))
        self.planned: list[Request] = []  # the "auto" requests of this step
        self._drawing: set[Draft] = set()  # drafts whose trees are drawn with fresh randomness

    def draft_for(self, params: SamplingParams, sample_index: int, max_tokens: int) -> RequestDraft | None:
        """The drafts of a new request whose text has at most max_tokens tokens, or None for plain decoding."""
        mode = params.speculation or self._mode
        if mode == "off":
            return None
        law = Law(params.temperature, params.seed, params.stream_index + sample_index)
        request = RequestDraft(mode, RequestPlan(sampling_kind(params)))
        for draft in self._drafts_of(mode):
            try:
                request.states[draft] = draft.start(law, max_tokens)
            except Exception as error:
                request.off[draft.name] = reason_of(error)
        return request

    def _drafts_of(self, mode: str) -> tuple[Draft, ...]:
        if mode not in ("suffix", "ngram") and self.drafts:
            return self.drafts
        kind = "ngram" if mode == "ngram" else "suffix"
        if kind not in self._named:
            known = {draft.name: draft for draft in self.drafts}
            new = PerRequest(kind, NgramDraft() if kind == "ngram" else SuffixDraft())
            self._named[kind] = known.get(kind, new)
        return (self._named[kind],)

    def plan_with(self, cost: StepCost) -> None:
        """Choose by these measured costs from now on."""
        self.planner = Planner(cost)

    def propose(self, requests: Sequence[Request]) -> dict[Request, Proposal]:
        """One tree per decoding request, the sizes of "auto" ones chosen together by expected tokens per second."""
        proposals: dict[Request, Proposal] = {}
        drafting, self.planned = [], []
        for request in requests:
            proposals[request] = Proposal.root(request.root)
            state = request.draft
            if state is not None:
                state.drafted_by, state.drafted, state.reason, state.failure = "", 0, ALWAYS, ""
                drafting.append(request)
                if state.mode == "auto":
                    self.planned.append(request)
        if self.planned:
            plans = [_of(r).plan for r in self.planned]
            if self.planner.rest(plans):
                for request in self.planned:
                    _of(request).reason = UNASKED
                drafting = [r for r in drafting if _of(r).mode != "auto"]
                self.planned = []
            elif len(plans) == len(drafting) and (draft := self._listener(self.planner.listening(plans))):
                return self._listen(draft, plans, proposals)
            else:
                self.planner.begin(plans, [r.kv_len for r in self.planned])
        if not drafting:
            return proposals
        # A tree deeper than the room left would compute tokens that can never be emitted.
        budgets = {r: budget for r in drafting if (budget := min(self._max_nodes, r.room)) > 1}
        for draft in dict.fromkeys(d for request in budgets for d in _of(request).states):
            self._ask(draft, [r for r in budgets if draft in _of(r).states], budgets, proposals)
        return self._sized(list(budgets), budgets, proposals)

    def _sized(
        self, asking: list[Request], budgets: dict[Request, int], proposals: dict[Request, Proposal]
    ) -> dict[Request, Proposal]:
        """The proposals as they are verified."""
        for request in asking:
            if _of(request).mode == "random":
                proposals[request] = self._randomised(proposals[request], budgets[request])
            # Before sizes are chosen: what a grammar refuses is no reason for a larger tree.
            if request.edits is not None and proposals[request].tree.drawn in PRUNABLE:
                proposals[request] = request.edits.legal(proposals[request])
        self._cut(proposals)
        return proposals

    def _listener(self, name: str) -> Draft | None:
        """The draft of that name if all planned requests can ask it."""
        found = [draft for draft in _of(self.planned[0]).states if draft.name == name]
        able = found and all(r.room > 1 and found[0] in _of(r).states for r in self.planned)
        return found[0] if able else None

    def _listen(
        self, draft: Draft, plans: Sequence[RequestPlan], proposals: dict[Request, Proposal]
    ) -> dict[Request, Proposal]:
        """Ask a draft that costs next to nothing, and plan the step only if it has something to say."""
        started = time.perf_counter()
        budgets = {request: min(self._max_nodes, request.room) for request in self.planned}
        members = told(draft, self.planned, self.taps)
        found = call_draft(draft, members, budgets, 0.0)
        seconds = time.perf_counter() - started
        if all(isinstance(proposal, Proposal) and len(proposal.tree) == 1 for proposal in found):
            self.planner.heard(seconds)
            for request in self.planned:
                _of(request).drafted_by, _of(request).reason = draft.name, EMPTY
            self.planned = []
            return proposals
        self.planner.begin(plans, [request.kv_len for request in self.planned])
        self.planner.drafted(draft.name, [_of(r).plan for r in members], draft.levels, seconds)
        self._take(draft, members, found, budgets, proposals)
        return self._sized(members, budgets, proposals)

    def _ask(
        self,
        draft: Draft,
        members: list[Request],
        budgets: dict[Request, int],
        proposals: dict[Request, Proposal],
    ) -> None:
        """Call one draft for the requests that want it now, and merge what it says into their proposals."""
        auto = [request for request in members if _of(request).mode == "auto"]
        if auto:
            gains = [self._promised(request, proposals[request]) for request in auto]
            wanted = self.planner.ask(draft.name, [_of(r).plan for r in auto], gains)
            unwanted = {request for request, yes in zip(auto, wanted, strict=True) if not yes}
            members = [request for request in members if request not in unwanted]
            auto = [request for request in auto if request not in unwanted]
        if (
            draft in self._drawing
        ):  # its trees are verified whole, so their size is chosen before they are drawn
            budgets = budgets | {r: self.planner.budget(_of(r).plan, draft.name, budgets[r]) for r in auto}
            members, auto = ([r for r in some if budgets[r] > 1] for some in (members, auto))
        elif draft.levels:  # of its last call: nodes of a model cost time also where they are cut off again
            budgets = budgets | {r: self.planner.reach(_of(r).plan, draft.name, budgets[r]) for r in auto}
        members = told(draft, members, self.taps)
        auto = [request for request in auto if draft in _of(request).states]
        if not members:
            return
        started = time.perf_counter() if auto else 0.0
        min_gain = self.planner.level_gain(draft.name) if len(auto) == len(members) else 0.0
        found = call_draft(draft, members, budgets, min_gain)
        if auto:
            seconds = time.perf_counter() - started
            self.planner.drafted(draft.name, [_of(r).plan for r in auto], draft.levels, seconds)
        self._take(draft, members, found, budgets, proposals)

    def _take(
        self,
        draft: Draft,
        members: list[Request],
        found: list[Proposal | Failure],
        budgets: dict[Request, int],
        proposals: dict[Request, Proposal],
    ) -> None:
        """Check what a draft says and merge it into the requests' proposals."""
        for request, proposal in zip(members, found, strict=True):
            limit = budgets[request]
            reason = proposal.reason if isinstance(proposal, Failure) else ""
            reason = reason or check_proposal(proposal, request.root, limit, self._vocab_size)
            if not reason and not self._any_tree and isinstance(proposal, Proposal):
                reason = unverifiable(self._verifier, proposal, self._vocab_size)
            if reason or isinstance(proposal, Failure):
                _of(request).fail(draft, reason)
            else:
                _of(request).succeed(draft)
                if proposal.tree.drawn not in PRUNABLE:
                    self._drawing.add(draft)
                self._add(request, draft.name, proposal, proposals, limit)

    def _add(
        self, request: Request, name: str, proposal: Proposal, proposals: dict[Request, Proposal], budget: int
    ) -> None:
        known, draft = proposals[request], _of(request)
        if len(known.tree) > 1:
            if len(proposal.tree) == 1:
                return
            paths = [self._likely(request, draft.drafted_by, known), self._likely(request, name, proposal)]
            tree, path = merge_drafts([known.tree, proposal.tree], paths, budget)
            name, proposal = f"{draft.drafted_by}+{name}", Proposal(tree, path)
        draft.drafted_by, draft.drafted = name, len(proposal.tree) - 1
        proposals[request] = proposal

    def _likely(self, request: Request, name: str, proposal: Proposal) -> NDArray[np.float32]:
        """Path probabilities of a proposal; where costs decide, those that its draft's past acceptance says."""
        if _of(request).mode != "auto":
            return proposal.path_probability
        return np.array(self.planner.estimate(_of(request).plan, name, proposal), dtype=np.float32)

    def _promised(self, request: Request, proposal: Proposal) -> float:
        """Accepted tokens that a proposal promises."""
        if len(proposal.tree) == 1:
            return 0.0
        draft = _of(request)
        return sum(self.planner.estimate(draft.plan, draft.drafted_by, proposal)[1:])

    def _cut(self, proposals: dict[Request, Proposal]) -> None:
        """Cut the trees of "auto" requests to the sizes that pay."""
        if not self.planned:
            return
        drafts = [_of(request) for request in self.planned]
        choices = self.planner.choose(
            [draft.plan for draft in drafts],
            [draft.drafted_by for draft in drafts],
            [proposals[request] for request in self.planned],
        )
        nodes = 0
        for request, draft, choice in zip(self.planned, drafts, choices, strict=True):
            if proposals[request].tree.drawn in PRUNABLE:  # others would be biased: see trees/verifiers.py
                draft.reason = choice.reason
                proposals[request] = proposals[request].prefix(choice.size)
            nodes += len(proposals[request].tree) - 1
        if not nodes:
            self.planner.nothing([draft.plan for draft in drafts], [draft.drafted_by for draft in drafts])
            self.planned = []

    def observe(self, request: Request, proposal: Proposal, path: Sequence[int]) -> None:
        """Learn from one verified proposal: `path` are the accepted nodes, root first."""
        draft = request.draft
        if self.planned and draft is not None and draft.mode == "auto":
            self.planner.observe(draft.plan, draft.drafted_by, proposal, path)

    def finish(self, nodes: int, prompt_tokens: int, model: float, verify: float) -> None:
        """Learn what the step cost: seconds of the model over `nodes` nodes, and of the verification."""
        if self.planned:
            plans = [_of(request).plan for request in self.planned]
            self.planner.finish(plans, nodes, prompt_tokens, model, verify)
        else:
            self.planner.finish_plain(nodes, prompt_tokens, model)

    def tell(self, request: Request) -> None:
        """Tell all drafts of a request what was committed."""
        draft = _of(request)
        for one in list(draft.states):
            draft.tell(one, self.taps)

    def _randomised(self, proposal: Proposal, budget: int) -> Proposal:
        """The drafts' tree with random branches grown into it, of a random size: for tests of exactness."""
        size = int(self._random.integers(1, budget + 1))
        noise = random_tree(
            size, self._vocab_size, int(self._random.integers(2**31)), root=int(proposal.tree.tokens[0])
        )
        tree = proposal.tree
        drafted = TokenTree.unchecked(tree.tokens, tree.parents, Drawn.DETERMINISTIC, tree.pruned)
        order = [drafted, noise] if self._random.random() < 0.5 else [noise, drafted]
        tree = merge_trees(order, budget)
        return Proposal(tree, np.full(len(tree), 1.0, dtype=np.float32))


def _of(request: Request) -> RequestDraft:
    assert request.draft is not None
    return request.draft
