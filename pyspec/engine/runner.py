# SPDX-License-Identifier: Apache-2.0
"""One step for all running requests: draft, run the model, verify, commit."""

from __future__ import annotations

import time
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from pyspec.calls import take_rows
from pyspec.drafts.base import Proposal
from pyspec.drafts.feature_rows import Features
from pyspec.engine.batch import StepBatch, Work
from pyspec.engine.executor import Executor
from pyspec.engine.request import Request
from pyspec.engine.scheduler import Scheduler
from pyspec.engine.speculation import Speculator
from pyspec.engine.statistics import Observer, PhaseSeconds, StepRecord


class Runner:
    """Runs the step loop of the scheduler's requests on one executor. `observer` is told of every decoding request's steps."""

    def __init__(
        self,
        executor: Executor,
        batch: StepBatch,
        scheduler: Scheduler,
        speculator: Speculator,
        eos: tuple[int, ...],
    ) -> None:
        self._executor, self._batch, self._scheduler = executor, batch, scheduler
        self._speculator, self._eos = speculator, eos
        self.observer: Observer | None = None
        self._numbers: WeakKeyDictionary[Request, int] = WeakKeyDictionary()  # of requests that were observed
        self._observed = 0

    def step(self) -> list[Request]:
        """Advance every running request by one step; return those that emitted tokens (finished ones are released)."""
        for request in self._scheduler.admit():
            if request.kv_len and request.draft is not None:  # a sample that begins behind a shared prompt
                assert request.shared is not None
                request.draft.commit(request.prompt[: request.kv_len], request.shared.features())
                self._speculator.tell(request)
        decoding = [request for request in self._scheduler.running if not request.in_prefill]
        planned = any(request.draft is not None and request.draft.mode == "auto" for request in decoding)
        clock = time.perf_counter if planned or self.observer is not None else _no_clock
        began = clock()
        works, proposals = self._plan(decoding)
        drafted = clock()
        self._batch.fill(works)
        self._executor.run()
        if clock is not _no_clock:
            self._executor.wait()
        ran = clock()
        before = {request: len(request.output) for request in decoding} if self.observer is not None else {}
        paths = self._emit(works, proposals)
        seconds = PhaseSeconds(drafted - began, ran - drafted, clock() - ran)
        prompt_tokens = sum(len(work.tokens) for work in works[len(decoding) :])
        self._speculator.finish(self._batch.T, prompt_tokens, seconds.model, seconds.verify)
        for request, start in before.items():
            self._record(
                request, proposals[request], paths[request], start, seconds, len(before), prompt_tokens
            )
        emitting = [work.request for work in works if work.logit_rows]
        for request in emitting:
            if request.finish_reason:
                request.finished = time.perf_counter()
                self._scheduler.release(request)
        return emitting

    def _plan(self, decoding: list[Request]) -> tuple[list[Work], dict[Request, Proposal]]:
        """The step's work, decoding requests first."""
        sizes = self._scheduler.prefill_sizes()
        proposals = self._speculator.propose(decoding)
        works = [
            Work.decode(request, proposals[request].tree, proposals[request].drawn) for request in decoding
        ]
        works += [Work.prefill(request, size) for request, size in sizes.items()]
        return works, proposals

    def _emit(self, works: list[Work], proposals: dict[Request, Proposal]) -> dict[Request, list[int]]:
        """Walk the trees, hand what their nodes emit to the requests, and what is committed to their drafts; the accepted paths.

        The executor compacts the cache behind them.
        """
        taps = self._executor.taps() if self._speculator.taps else None
        features = taps.numpy() if taps is not None and taps.device.type == "cpu" else taps
        if any(work.logit_rows for work in works):
            asked = [work.request.params.logprobs for work in works if work.logit_rows]
            watched = self.observer is not None and getattr(self.observer, "wants_logprobs", True)
            least = 0 if watched else None  # records have the emitted tokens' logprobs where somebody looks
            wanted = max((n for n in asked if n is not None), default=least)
            verified = self._executor.verify(
                wanted
            )  # as lists: an element of an array costs ten times as much
            path, path_len = verified.path.tolist(), verified.path_len.tolist()
            emitted, logprobs = verified.emitted.tolist(), verified.logprobs.tolist()
        now, end, paths = time.perf_counter(), 0, {}
        for b, work in enumerate(works):
            request, begin, nodes = work.request, end, None
            end += len(work.tokens)
            n = path_len[b] if work.logit_rows else 0
            if request in proposals:
                request.kv_len += n
                request.steps += 1
                request.drafted_nodes += len(work.tokens) - 1
                paths[request] = nodes = path[b][:n]
                self._speculator.observe(request, proposals[request], nodes)
            else:
                request.kv_len += len(work.tokens)
                request.prefilled = now
                if taps is not None and request.shared is not None:
                    request.shared.keep(request, taps[begin:end])
            if n:
                top = []
                if request.params.logprobs:
                    pairs = zip(
                        verified.top_tokens[b, :n].tolist(),
                        verified.top_logprobs[b, :n].tolist(),
                        strict=True,
                    )
                    top = [list(zip(*pair, strict=True))[: request.params.logprobs] for pair in pairs]
                request.emit(emitted[b][:n], logprobs[b][:n], top, self._eos)
            if request.draft is not None and request.finish_reason is None:
                committed = work.tokens if nodes is None else work.tokens[nodes]
                rows = None if features is None else _rows_of(features, begin, end, nodes)
                request.draft.commit(committed.tolist(), rows)
                if nodes is None:  # its prompt is followed while it is computed
                    self._speculator.tell(request)
        return paths

    def _record(
        self,
        request: Request,
        proposal: Proposal,
        path: list[int],
        start: int,
        seconds: PhaseSeconds,
        batch: int,
        prompt_tokens: int,
    ) -> None:
        assert self.observer is not None
        if request not in self._numbers:
            self._numbers[request] = self._observed
            self._observed += 1
        draft = request.draft
        planned = draft is not None and draft.mode == "auto"
        self.observer.record(
            StepRecord(
                request=self._numbers[request],
                step=request.steps - 1,
                root_position=request.kv_len - len(path),
                tokens=proposal.tree.tokens,
                parents=proposal.tree.parents,
                path_probability=proposal.path_probability,
                path=path,
                emitted=request.output[start:],
                logprobs=request.logprobs[start:],
                seconds=seconds,
                batch=batch,
                nodes=self._batch.T,
                prompt_tokens=prompt_tokens,
                draft="" if draft is None else draft.drafted_by,
                drafted=0 if draft is None else draft.drafted,
                reason="speculation is off" if draft is None else draft.reason,
                failure="" if draft is None else draft.failure,
                plain_seconds=self._speculator.planner.plain_seconds if planned else None,
                top_logprobs=request.top_logprobs[start:],
            )
        )


def _rows_of(taps: Features, begin: int, end: int, nodes: list[int] | None) -> Features:
    """Rows [begin, end), or those of them that `nodes` counts from begin on, ascending."""
    if nodes is None or nodes[-1] == len(nodes) - 1:
        return taps[begin : end if nodes is None else begin + len(nodes)]
    rows = np.array(nodes, dtype=np.int32) + begin
    return take_rows(taps, torch.from_numpy(rows)) if isinstance(taps, Tensor) else taps[rows]


def _no_clock() -> float:
    """The time where nobody asks for it."""
    return 0.0
