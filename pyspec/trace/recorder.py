# SPDX-License-Identifier: Apache-2.0
"""What a trace holds: the records of one answer as data that JSON can carry."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pyspec.engine.statistics import Statistics, StepRecord

FORMAT = 1
MAX_STEPS = 100_000  # a page of so many steps is as much as a browser takes


class Recorder:
    """An Observer that keeps every record, of one request if its number is given, up to MAX_STEPS; `dropped` counts the others."""

    def __init__(self, request: int | None = None) -> None:
        self._request = request
        self.records: list[StepRecord] = []
        self.statistics = Statistics()
        self.dropped = 0

    def record(self, record: StepRecord) -> None:
        """Keep one record."""
        if self._request is not None and record.request != self._request:
            return
        self.statistics.record(record)
        if len(self.records) < MAX_STEPS:
            self.records.append(record)
        else:
            self.dropped += 1


def trace_data(
    recorder: Recorder,
    prompt: Sequence[int],
    output: Sequence[int],
    token_text: Callable[[int], str],
    pieces: Callable[[Iterable[int]], list[str]],
    about: dict[str, str],
) -> dict[str, Any]:
    """The trace of one answer.

    token_text(id): how a single token reads. pieces(ids): the text that each of the tokens adds to a text (whole characters only). about:
    what is shown at the head, in order. Records are of decode steps: the first token of `output` comes from the prompt's last step.
    """
    records = recorder.records
    first = min(1, len(output))  # the step that ends the prompt emits it
    texts = pieces([*prompt, *output])
    texts_of_output = texts[len(prompt) :]
    known: dict[int, int] = {}
    steps = []
    at = first
    for record in records:
        count = len(record.emitted)
        steps.append(_step(record, known, texts_of_output[at : at + count]))
        at += count
    return {
        "format": FORMAT,
        "about": about,
        "prompt": "".join(texts[: len(prompt)]),
        "first": "".join(texts_of_output[:first]),
        "tokens": [[token, token_text(token)] for token in known],
        "steps": steps,
        "dropped": recorder.dropped,
        "totals": recorder.statistics.to_dict(),
    }


def _step(record: StepRecord, known: dict[int, int], texts: Sequence[str]) -> dict[str, Any]:
    """One record with short names: the page explains them; tokens are indices into the trace's list."""
    index = lambda token: known.setdefault(int(token), len(known))
    return {
        "position": record.root_position,
        "tokens": [index(token) for token in record.tokens],
        "parents": [int(parent) for parent in record.parents],
        "said": [_number(float(value)) for value in record.path_probability],
        "path": [int(node) for node in record.path],
        "emitted": [index(token) for token in record.emitted],
        "texts": list(texts),
        "logprobs": [_number(value) for value in record.logprobs],
        "top": [[[index(token), _number(value)] for token, value in row] for row in record.top_logprobs],
        "seconds": [_number(value) for value in record.seconds],
        "plain": _number(record.plain_seconds),
        "batch": record.batch,
        "draft": record.draft,
        "drafted": record.drafted,
        "reason": record.reason,
        "failure": record.failure,
    }


def _number(value: float | None) -> float | None:
    """Four digits; None for what JSON cannot hold."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None
