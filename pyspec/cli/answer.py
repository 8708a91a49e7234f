# SPDX-License-Identifier: Apache-2.0
"""Streaming of one answer to standard output."""

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


def stream_answer(
    llm: LLM, prompt: str | list[int], params: SamplingParams, *, echo: bool, parts: list[str] | None = None
) -> Answer:
    """Generate one answer; `echo` prints the text as it comes, ended by one newline.

    `parts` receives the pieces of text as they come, so that a caller has them after Ctrl-C. The request's memory is freed
    however this ends.
    """
    parts = [] if parts is None else parts
    token_ids: list[int] = []
    with closing(cast("Generator[StreamChunk, None, None]", llm.stream(prompt, params))) as chunks:
        for chunk in chunks:
            parts.append(chunk.text)
            token_ids += chunk.token_ids
            if echo:
                print(chunk.text, end="", flush=True)
    assert chunk.finish_reason is not None  # the last chunk carries both
    assert chunk.stats is not None
    text = "".join(parts)
    if echo and not text.endswith("\n"):
        print(flush=True)
    return Answer(text, token_ids, chunk.finish_reason, chunk.stats)
