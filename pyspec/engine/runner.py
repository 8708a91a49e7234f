# SPDX-License-Identifier: Apache-2.0
"""One step for all running requests: draft, run the model, verify, commit."""

from __future__ import annotations

import time

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyspec import ops
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
        self._sampled: list[Request] = []
        self._sampling: tuple[Tensor, ...] = ()

    def step(self) -> list[Request]:
        """Advance every running request by one step; return those that emitted tokens (finished ones are released)."""
        self._scheduler.admit()
        works, proposals = self._plan()
        self._batch.fill(works)
        self._executor.run()
        emitting = [work for work in works if work.logit_rows]
        if emitting:
            self._verify(emitting, proposals)
        for work in works:
            if not work.logit_rows:
                work.request.kv_len += len(work.tokens)
        for work in emitting:
            if work.request.finish_reason:
                work.request.finished = time.perf_counter()
                self._scheduler.release(work.request)
                self._sampled = []  # hold on to nothing of it
        return [work.request for work in emitting]

    def _plan(self) -> tuple[list[Work], dict[Request, Proposal]]:
        sizes = self._scheduler.prefill_sizes()
        decoding = [request for request in self._scheduler.running if not request.in_prefill]
        proposals = self._speculator.propose(decoding)
        works = [Work.decode(request, proposals[request].tree) for request in decoding]
        works += [Work.prefill(request, size) for request, size in sizes.items()]
        return works, proposals

    def _verify(self, works: list[Work], proposals: dict[Request, Proposal]) -> None:
        """Pick tokens along each tree, commit the accepted paths' KV and hand the tokens to the requests."""
        requests = [work.request for work in works]
        if requests != self._sampled:  # the same requests as in the last step have the same parameters
            self._sampled, self._sampling = requests, _sampling_arguments(requests)
        longest = 1 + max((int(w.depths.max()) for w in works if not w.request.in_prefill), default=0)
        wanted = max((work.request.params.logprobs or 0) for work in works)
        path, path_len, emitted, logprobs, top_tokens, top_logprobs = (
            out.numpy()
            for out in ops.verify_tree(
                self._executor.logits(),
                *_tree_arguments(works),
                *self._sampling,
                max_path=longest,
                num_logprobs=wanted,
            )
        )
        self._commit(works, path, path_len)
        now = time.perf_counter()
        for b, work in enumerate(works):
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

    def _commit(self, works: list[Work], path: NDArray, path_len: NDArray) -> None:
        """Compact the KV of accepted paths; a path that is 0, 1, 2, ... lies where it belongs already."""
        index = {id(work.request): b for b, work in enumerate(works) if not work.request.in_prefill}
        moves = np.zeros((self._batch.B, path.shape[1]), dtype=np.int32)
        lengths = np.zeros(self._batch.B, dtype=np.int32)
        for b, request in enumerate(self._batch.requests):
            if (row := index.get(id(request))) is not None:
                n = int(path_len[row])
                if not np.array_equal(path[row, :n], np.arange(n)):
                    moves[b], lengths[b] = path[row], n
        if lengths.any():
            self._executor.commit(torch.from_numpy(moves), torch.from_numpy(lengths))


def _tree_arguments(works: list[Work]) -> tuple[Tensor, ...]:
    """tokens, parents, cu_t and root positions of the trees whose logits were computed."""
    tokens, parents, cu_t, position = [], [], [0], []
    for work in works:
        n = work.logit_rows
        prefill = work.request.in_prefill  # then the prompt's last token is a tree of one node
        tokens.append(work.tokens[-n:])
        parents.append(np.array([-1], dtype=np.int32) if prefill else work.parents)
        cu_t.append(cu_t[-1] + n)
        position.append(work.request.kv_len + (len(work.tokens) - 1 if prefill else 0))
    return (
        torch.from_numpy(np.concatenate(tokens)),
        torch.from_numpy(np.concatenate(parents)),
        torch.tensor(cu_t, dtype=torch.int32),
        torch.tensor(position, dtype=torch.int32),
    )


def _sampling_arguments(requests: list[Request]) -> tuple[Tensor, ...]:
    """temperature, top_k, top_p, min_p, seed and stream of the requests."""
    params = [request.params for request in requests]
    return (
        torch.tensor([p.temperature for p in params], dtype=torch.float32),
        torch.tensor([p.top_k for p in params], dtype=torch.int32),
        torch.tensor([p.top_p for p in params], dtype=torch.float32),
        torch.tensor([p.min_p for p in params], dtype=torch.float32),
        torch.tensor([p.seed for p in params], dtype=torch.int64),
        torch.tensor([p.stream_index for p in params], dtype=torch.int32),
    )
