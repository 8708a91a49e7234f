# SPDX-License-Identifier: Apache-2.0
"""One step for all running requests: draft, run the model, verify, commit."""

from __future__ import annotations

import time

from pyspec.drafts.base import Proposal
from pyspec.engine.batch import StepBatch, Work
from pyspec.engine.executor import Executor
from pyspec.engine.request import Request
from pyspec.engine.scheduler import Scheduler
from pyspec.engine.speculation import Speculator


class Runner:
    """Runs the step loop of the scheduler's requests on one executor."""

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

    def step(self) -> list[Request]:
        """Advance every running request by one step; return those that emitted tokens (finished ones are released)."""
        self._scheduler.admit()
        works, proposals = self._plan()
        self._batch.fill(works)
        self._executor.run()
        emitting = [work.request for work in works if work.logit_rows]
        if emitting:
            self._emit(works, proposals)
        for work in works:
            if not work.logit_rows:
                work.request.kv_len += len(work.tokens)
        for request in emitting:
            if request.finish_reason:
                request.finished = time.perf_counter()
                self._scheduler.release(request)
        return emitting

    def _plan(self) -> tuple[list[Work], dict[Request, Proposal]]:
        sizes = self._scheduler.prefill_sizes()
        decoding = [request for request in self._scheduler.running if not request.in_prefill]
        proposals = self._speculator.propose(decoding)
        for request in decoding:
            if request.edits is not None:
                proposals[request] = request.edits.legal(proposals[request])
        works = [Work.decode(request, proposals[request].tree) for request in decoding]
        works += [Work.prefill(request, size) for request, size in sizes.items()]
        return works, proposals

    def _emit(self, works: list[Work], proposals: dict[Request, Proposal]) -> None:
        """Walk the trees and hand what their nodes emit to the requests; the executor compacts the cache behind them."""
        asked = [work.request.params.logprobs for work in works if work.logit_rows]
        wanted = max((n for n in asked if n is not None), default=None)
        path, path_len, emitted, logprobs, top_tokens, top_logprobs = self._executor.verify(wanted)
        now = time.perf_counter()
        for b, work in enumerate(works):
            if not work.logit_rows:
                continue
            request, n = work.request, int(path_len[b])
            if request.in_prefill:
                request.kv_len += len(work.tokens)
                request.prefilled = now
                committed: list[int] = []
            else:
                request.kv_len += n
                request.steps += 1
                request.drafted_nodes += len(work.tokens) - 1
                committed = work.tokens[path[b, :n]].tolist()
                self._speculator.observe(request, proposals[request], path[b, :n])
            top = [
                list(zip(top_tokens[b, i].tolist(), top_logprobs[b, i].tolist(), strict=True))[
                    : request.params.logprobs
                ]
                for i in range(n if request.params.logprobs else 0)
            ]
            request.emit(emitted[b, :n].tolist(), logprobs[b, :n].tolist(), top, self._eos)
            if request.draft is not None and committed:
                request.draft.extend(committed)
