# SPDX-License-Identifier: Apache-2.0
"""Streaming of answers to standard output."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from pyspec.engine import LLM, RequestStats, SamplingParams, StreamChunk


@dataclass(frozen=True)
class Answer:
    """A finished answer, as `--json` prints it."""

    text: str
    token_ids: list[int]
    finish_reason: str
    stats: RequestStats
    error: str | None = None
    sample_index: int = 0
    logprobs: list[float] | None = None
    top_logprobs: list[list[tuple[int, float]]] | None = None


def stream_answers(
    llm: LLM, prompt: str | list[int], params: SamplingParams, *, echo: bool, parts: list[str] | None = None
) -> list[Answer]:
    """Generate the params.n answers to a prompt; `echo` prints each, ended by one newline: a single one as its text comes.

    `parts` receives the pieces of text as they come, so that a caller has them after Ctrl-C. The requests' memory is freed
    however this ends.
    """
    parts = [] if parts is None else parts
    live = echo and params.n == 1
    chunks: list[list[StreamChunk]] = [[] for _ in range(params.n)]
    with closing(cast("Generator[StreamChunk, None, None]", llm.stream(prompt, params))) as stream:
        for chunk in stream:
            chunks[chunk.sample_index].append(chunk)
            parts.append(chunk.text)
            if live:
                print(chunk.text, end="", flush=True)
    answers = [_joined(of_sample) for of_sample in chunks]
    for answer in answers if echo else ():
        if not live:
            print(answer.text, end="")
        if not answer.text.endswith("\n"):
            print(flush=True)
    return answers


def stream_answer(
    llm: LLM, prompt: str | list[int], params: SamplingParams, *, echo: bool, parts: list[str] | None = None
) -> Answer:
    """The one answer of params with n = 1, as stream_answers gives it."""
    (answer,) = stream_answers(llm, prompt, params, echo=echo, parts=parts)
    return answer


def _joined(chunks: list[StreamChunk]) -> Answer:
    last = chunks[-1]
    assert last.finish_reason is not None  # the last chunk carries both
    assert last.stats is not None
    tokens, logprobs, top = [], [], []
    for chunk in chunks:
        tokens += chunk.token_ids
        logprobs += chunk.logprobs or []
        top += chunk.top_logprobs or []
    return Answer(
        text="".join(chunk.text for chunk in chunks),
        token_ids=tokens,
        finish_reason=last.finish_reason,
        stats=last.stats,
        error=last.error,
        sample_index=last.sample_index,
        logprobs=None if last.logprobs is None else logprobs,
        top_logprobs=None if last.top_logprobs is None else top,
    )
