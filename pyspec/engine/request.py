# SPDX-License-Identifier: Apache-2.0
"""One request: what it asked, what it has so far, and what it returns."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyspec.engine.edits import RequestEdits
from pyspec.engine.sampling_params import SamplingParams
from pyspec.engine.text import TextStream

if TYPE_CHECKING:
    from pyspec.engine.shared_prompt import SharedPrompt
    from pyspec.engine.speculation import RequestDraft


@dataclass(frozen=True)
class RequestStats:
    """What a request cost. mean_accepted_length: tokens emitted per decode step (1 without speculation).

    draft_failures: proposals of drafts that were refused; drafts_off: "name: reason" of drafts that were switched off for it.
    """

    prompt_tokens: int
    output_tokens: int
    prefill_seconds: float
    decode_seconds: float
    steps: int
    drafted_nodes: int
    mean_accepted_length: float
    tokens_per_second: float
    draft_failures: int = 0
    drafts_off: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """One sample of the answer to one prompt. logprobs: natural log of the model's own probability of each emitted token.

    finish_reason: "eos" (the model ended), "stop" (a stop string or stop token, or a grammar that nothing can follow),
    "length" (max_tokens or the end of the context), "error" (no token could be chosen; `error` says why, and the tokens so far
    stand). prompt_index, sample_index: which of the call's prompts, and which of its n samples.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] | None
    top_logprobs: list[list[tuple[int, float]]] | None
    stats: RequestStats
    error: str | None = None
    prompt_index: int = 0
    sample_index: int = 0


@dataclass(frozen=True)
class StreamChunk:
    """New text and tokens of a streamed answer, with their logprobs if asked for (as in Completion); a sample's last chunk carries
    the reason, its error and the statistics."""

    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stats: RequestStats | None = None
    error: str | None = None
    sample_index: int = 0
    logprobs: list[float] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None


@dataclass(eq=False)
class Request:
    """State of a request inside the engine. tokens = prompt + output; the KV of tokens[:kv_len] is committed."""

    prompt: list[int]
    params: SamplingParams
    text: TextStream
    draft: RequestDraft | None
    max_output: int  # params.max_tokens, or less where the context ends
    edits: RequestEdits | None = None  # None: the model's logits stay as they are
    prompt_index: int = 0
    sample_index: int = 0
    shared: SharedPrompt | None = None  # with the other samples of the prompt
    pages: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    kv_len: int = 0
    finish_reason: str | None = None
    error: str | None = None
    steps: int = 0
    drafted_nodes: int = 0
    started: float = field(default_factory=time.perf_counter)
    prefilled: float | None = None
    finished: float | None = None

    def __post_init__(self) -> None:
        self._stop_tokens = frozenset(self.params.stop_token_ids)

    @property
    def in_prefill(self) -> bool:
        return self.kv_len < len(self.prompt)

    @property
    def root(self) -> int:
        """The last emitted token: the root of the next tree."""
        return self.output[-1]

    @property
    def room(self) -> int:
        """Tokens that may still be emitted."""
        return self.max_output - len(self.output)

    def emit(
        self,
        tokens: list[int],
        logprobs: list[float],
        top: list[list[tuple[int, float]]],
        eos: tuple[int, ...],
    ) -> None:
        """Take the tokens of one step, up to whatever ends the answer. A token without a logprob was not chosen by any law."""
        for i, token in enumerate(tokens):
            if math.isnan(logprobs[i]):
                self.fail(self._no_law())
                return
            self.output.append(token)
            self.logprobs.append(logprobs[i])
            if top:
                self.top_logprobs.append(top[i])
            self.finish_reason = self._ending(token, eos)
            if self.finish_reason:
                self.text.finish()
                return

    def fail(self, error: str) -> None:
        """End the answer where it is: nothing more can be computed for it."""
        self.finish_reason, self.error = "error", error
        self.text.finish()

    def _ending(self, token: int, eos: tuple[int, ...]) -> str | None:
        if token in eos and not self.params.ignore_eos:
            return "eos"
        if token in self._stop_tokens:
            return "stop"
        stopped = self.text.push(token, len(self.output) > self.params.min_tokens)
        complete = self.edits is not None and self.edits.extend(token)
        if stopped or complete:
            return "stop"
        return None if self.room else "length"

    def _no_law(self) -> str:
        if self.edits is None:
            return "the model gave no finite logit"
        grammar = self.edits.grammar
        reason = f" ({grammar.error})" if grammar is not None and grammar.error else ""
        return f"no finite logit is left after {', '.join(self.params.edits)}{reason}"

    def stats(self) -> RequestStats:
        now = self.finished or time.perf_counter()
        prefilled = self.prefilled or now
        decode, decoded = (
            now - prefilled,
            max(0, len(self.output) - 1),
        )  # the first token comes from the prefill
        return RequestStats(
            prompt_tokens=len(self.prompt),
            output_tokens=len(self.output),
            prefill_seconds=prefilled - self.started,
            decode_seconds=decode,
            steps=self.steps,
            drafted_nodes=self.drafted_nodes,
            mean_accepted_length=decoded / self.steps if self.steps else 0.0,
            tokens_per_second=decoded / decode if decode > 0 else 0.0,
            draft_failures=0 if self.draft is None else self.draft.failed,
            drafts_off=()
            if self.draft is None
            else tuple(f"{name}: {reason}" for name, reason in self.draft.off.items()),
        )

    def chunk(self, first: int) -> StreamChunk:
        """What is new since the last chunk: output[first:] and the text that became certain."""
        wanted = self.params.logprobs
        return StreamChunk(
            text=self.text.take(),
            token_ids=self.output[first:],
            finish_reason=self.finish_reason,
            stats=self.stats() if self.finish_reason else None,
            error=self.error,
            sample_index=self.sample_index,
            logprobs=self.logprobs[first:] if wanted is not None else None,
            top_logprobs=self.top_logprobs[first:] if wanted else None,
        )

    def completion(self) -> Completion:
        assert self.finish_reason is not None
        wanted = self.params.logprobs
        return Completion(
            text=self.text.text,
            token_ids=list(self.output),
            finish_reason=self.finish_reason,
            logprobs=list(self.logprobs) if wanted is not None else None,
            top_logprobs=list(self.top_logprobs) if wanted else None,
            stats=self.stats(),
            error=self.error,
            prompt_index=self.prompt_index,
            sample_index=self.sample_index,
        )
