# SPDX-License-Identifier: Apache-2.0
"""Requests from prompts and parameters: what can be refused is refused here, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import TypeAlias

from pyspec.engine.edits import RequestEdits
from pyspec.engine.executor import Executor
from pyspec.engine.grammar import GrammarCompiler
from pyspec.engine.request import Request
from pyspec.engine.sampling_params import SamplingParams
from pyspec.engine.scheduler import Scheduler
from pyspec.engine.shared_prompt import SharedPrompt
from pyspec.engine.speculation import Speculator
from pyspec.engine.text import TextStream
from pyspec.errors import UnsupportedError
from pyspec.models.checkpoint import Checkpoint
from pyspec.models.tokenizer import StreamDecoder
from pyspec.trees.verifiers import Verifier

Prompt: TypeAlias = str | Sequence[int]


class Admission:
    """Makes the requests of one model for its scheduler."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        executor: Executor,
        scheduler: Scheduler,
        speculator: Speculator,
        max_context: int,
        num_pages: int,
        page_size: int,
        verifier: Verifier,
        share_prompt: Callable[[int], SharedPrompt],
    ) -> None:
        """share_prompt(length): what the samples of a prompt of so many tokens have in common."""
        self._checkpoint, self._config, self._executor = checkpoint, checkpoint.config, executor
        self._scheduler, self._speculator = scheduler, speculator
        self._max_context, self._num_pages, self._page_size = max_context, num_pages, page_size
        self._verifier, self._share_prompt = verifier, share_prompt
        self._grammars: GrammarCompiler | None = None  # made for the first request with a grammar

    def requests(
        self, prompt: Prompt, params: SamplingParams, where: str, prompt_index: int = 0
    ) -> list[Request]:
        """params.n requests, one per sample.

        ValueError names what is wrong (`where` is the prompt), UnsupportedError what the executor or this installation lacks.
        """
        if not isinstance(params, SamplingParams):
            raise TypeError(f"LLM: params must be SamplingParams, got {type(params).__name__}")
        ids = self._token_ids(prompt, where)
        self._check(params)
        limit = min(params.max_tokens, self._max_context - len(ids))
        edits = self._edits(ids, params)
        made = [
            self._request(
                ids, params, limit, edits.sibling() if edits and sample else edits, prompt_index, sample
            )
            for sample in range(params.n)
        ]
        if (needed := self._scheduler.pages_needed(made[0])) > self._num_pages:
            raise ValueError(
                f"LLM: {where} must fit num_pages={self._num_pages} of {self._page_size} tokens, "
                f"got {len(ids)} tokens and max_tokens={limit}, which need {needed}"
            )
        if len(made) > 1 and len(ids) > 1:
            self._share_prompt(len(ids)).join(made)
        return made

    def _request(
        self,
        ids: list[int],
        params: SamplingParams,
        limit: int,
        edits: RequestEdits | None,
        prompt_index: int,
        sample_index: int,
    ) -> Request:
        text = TextStream(stream_decoder(self._checkpoint, bool(params.stop)), tuple(params.stop))
        draft = self._speculator.draft_for(params, sample_index, len(ids) + limit)
        return Request(ids, params, text, draft, limit, edits, prompt_index, sample_index)

    def _edits(self, ids: list[int], params: SamplingParams) -> RequestEdits | None:
        if not params.edits:
            return None
        grammar = None
        if params.grammar is not None:
            if self._grammars is None:
                eos, vocab = self._config.eos_ids, self._config.vocab_size
                self._grammars = GrammarCompiler(self._checkpoint.tokenizer, vocab, eos)
            grammar = self._grammars.state(params.grammar)
        eos = () if params.ignore_eos else self._config.eos_ids
        return RequestEdits(params, ids, {*eos, *params.stop_token_ids}, self._config.vocab_size, grammar)

    def _token_ids(self, prompt: Prompt, where: str) -> list[int]:
        vocab = self._config.vocab_size
        if isinstance(prompt, str):
            ids = self._checkpoint.tokenizer.encode(prompt)
        else:
            try:
                ids = [index(token) for token in prompt]
            except TypeError as error:
                raise TypeError(f"LLM: {where} must be a text or token ids, got {error}") from None
        if not ids:
            raise ValueError(f"LLM: {where} must have at least one token, got none")
        if bad := [token for token in ids if not 0 <= token < vocab]:
            raise ValueError(f"LLM: {where} must have tokens in [0, {vocab}), got {bad[0]}")
        if len(ids) >= self._max_context:
            raise ValueError(
                f"LLM: {where} must have fewer than max_context={self._max_context} tokens, got {len(ids)}"
            )
        return ids

    def _check(self, params: SamplingParams) -> None:
        """What depends on the model and its executor."""
        vocab = self._config.vocab_size
        if params.top_k > vocab:
            raise ValueError(f"LLM: top_k must be in [0, {vocab}], got {params.top_k}")
        if (params.logprobs or 0) > vocab:
            raise ValueError(f"LLM: logprobs must be in [0, {vocab}], got {params.logprobs}")
        named = {
            "logit_bias": dict(params.logit_bias), "banned_tokens": params.banned_tokens,
            "allowed_tokens": params.allowed_tokens, "stop_token_ids": params.stop_token_ids,
        }  # fmt: skip
        for name, tokens in named.items():
            if tokens and max(tokens) >= vocab:
                raise ValueError(f"LLM: {name} must have tokens in [0, {vocab}), got {max(tokens)}")
        if self._verifier.greedy and params.temperature > 0:
            raise UnsupportedError(
                f"LLM: temperature must be 0 with verifier 'greedy', got {params.temperature:g}; use verifier 'shared_noise'"
            )
        special = (*params.edits, *(("typical_p",) if params.typical_p < 1 else ()))
        if special and (reason := self._executor.refusal(bool(params.edits), params.typical_p < 1)):
            raise UnsupportedError(
                f"LLM: executor {self._executor.name!r} cannot run a request with {', '.join(special)}: {reason}; "
                "executor='compiled' runs it on the CPU"
            )


def stream_decoder(checkpoint: Checkpoint, needed: bool) -> StreamDecoder | None:
    """What turns a model's tokens into text; None for a model without a tokenizer, unless text is needed (ValueError)."""
    try:
        return StreamDecoder(checkpoint.tokenizer)
    except ValueError:
        if needed:
            raise
        return None
