# SPDX-License-Identifier: Apache-2.0
"""The protocol of a worker: one JSON object a line in, one a line out.

    {"do": "load", "model": PATH, "threads": 2, "context": 2560, "batch": 1}   -> {"ok": {"what": TEXT, "seconds": S, "before_bytes": N}}
    {"do": "prefill", "prompt": [ID, ...]}                                      -> {"ok": {"seconds": S}}
    {"do": "decode", "prompts": [[ID, ...], ...], "steps": N}                   -> {"ok": {"tokens": [ID, ...], "count": N, "seconds": [S, ...]}}
    {"do": "peak"}                                                              -> {"ok": {"peak_bytes": N}}

`seconds` of decode are those of its steps behind the first token of every prompt, `count` the tokens that all prompts together got in
them, `tokens` all of the first prompt's. Whatever goes wrong is answered with {"error": TEXT}. Sampling is greedy, nothing ends early.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO


@dataclass(frozen=True)
class Decoded:
    """Token ids of the first prompt; tokens of all prompts behind their first; seconds of the steps that gave those."""

    tokens: list[int]
    count: int
    seconds: list[float]


class Adapter(Protocol):
    """One library's way to do what the protocol asks."""

    def load(self, model: str, threads: int, context: int, batch: int) -> str:
        """Loads for `batch` requests of `context` tokens; says which weights, KV cache and build are in use."""

    def prefill(self, prompt: list[int]) -> float:
        """Seconds until the first token of an answer to a prompt that nothing is remembered of."""

    def decode(self, prompts: list[list[int]], steps: int) -> Decoded:
        """Answers prompts of one length together, steps + 1 tokens each."""


class Steps:
    """Times of the steps of one answer: `mark` after the first token and after each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def mark(self) -> None:
        self.times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]


def serve(make: Callable[[], Adapter], requests: TextIO, replies: TextIO) -> None:
    """Answers requests until they end. The library is imported with the first one, so that a failed import is an answer."""
    adapter: Adapter | None = None
    for line in requests:
        try:
            if adapter is None:
                adapter = make()
            reply: dict[str, Any] = {"ok": answer(adapter, json.loads(line))}
        except Exception as error:  # whatever a library raises is the asking side's to report
            reply = {"error": f"{type(error).__name__}: {error}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def answer(adapter: Adapter, request: dict[str, Any]) -> dict[str, Any]:
    """One request's reply; ValueError for one that the protocol does not have."""
    match request:
        case {
            "do": "load",
            "model": str(model),
            "threads": int(threads),
            "context": int(context),
            "batch": int(batch),
        }:
            before, begin = resident_bytes(), time.perf_counter()
            what = adapter.load(model, threads, context, batch)
            return {"what": what, "seconds": time.perf_counter() - begin, "before_bytes": before}
        case {"do": "prefill", "prompt": list(prompt)}:
            return {"seconds": adapter.prefill(prompt)}
        case {"do": "decode", "prompts": list(prompts), "steps": int(steps)}:
            return asdict(adapter.decode(prompts, steps))
        case {"do": "peak"}:
            return {"peak_bytes": peak_bytes()}
    raise ValueError(
        f"worker: request must be load, prefill, decode or peak with its fields, got {request!r}"
    )


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
