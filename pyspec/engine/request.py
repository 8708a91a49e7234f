# SPDX-License-Identifier: Apache-2.0
"""One request: what it asked, what it has so far, and what it returns."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pyspec.engine.sampling_params import SamplingParams
from pyspec.engine.text import TextStream

if TYPE_CHECKING:
    from pyspec.engine.speculation import RequestDraft


@dataclass(frozen=True)
class RequestStats:
    """What a request cost. mean_accepted_length: tokens emitted per decode step (1 without speculation)."""

    prompt_tokens: int
    output_tokens: int
    prefill_seconds: float
    decode_seconds: float
    steps: int
    drafted_nodes: int
    mean_accepted_length: float
    tokens_per_second: float


@dataclass(frozen=True)
class Completion:
    """The answer to one prompt. logprobs: natural log of the model's own probability of each emitted token.

    finish_reason: "eos" (the model ended), "stop" (a stop string), "length" (max_tokens or the end of the context).
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    logprobs: list[float] | None
    top_logprobs: list[list[tuple[int, float]]] | None
    stats: RequestStats


@dataclass(frozen=True)
class StreamChunk:
    """New text and tokens of a streamed answer; the last chunk carries the reason and the statistics."""

    text: str
    token_ids: list[int]
    finish_reason: str | None = None
    stats: RequestStats | None = None


@dataclass(eq=False)
class Request:
    """State of a request inside the engine. tokens = prompt + output; the KV of tokens[:kv_len] is committed."""

    prompt: list[int]
    params: SamplingParams
    text: TextStream
    draft: RequestDraft | None
    max_output: int  # params.max_tokens, or less where the context ends
    pages: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    kv_len: int = 0
    finish_reason: str | None = None
    steps: int = 0
    drafted_nodes: int = 0
    started: float = field(default_factory=time.perf_counter)
    prefilled: float | None = None
    finished: float | None = None

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
        """Take the tokens of one step, up to whatever ends the answer."""
        for i, token in enumerate(tokens):
            self.output.append(token)
            self.logprobs.append(logprobs[i])
            if top:
                self.top_logprobs.append(top[i])
            if token in eos and not self.params.ignore_eos:
                self.finish_reason = "eos"
            elif self.text.push(token):
                self.finish_reason = "stop"
            elif self.room == 0:
                self.finish_reason = "length"
            if self.finish_reason:
                self.text.finish()
                return

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
        )
