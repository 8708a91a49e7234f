# SPDX-License-Identifier: Apache-2.0
"""What a request asks of the sampler, validated when it is made."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

SPECULATION = ("off", "auto", "suffix", "ngram", "random")


@dataclass(frozen=True)
class SamplingParams:
    """Sampling of one request. The same seed gives the same tokens with and without speculation, in any batch.

    temperature: 0 is greedy. top_k: 0 is off. top_p: 1 is off. min_p: 0 is off; filters apply in this order.
    stream_index: which of several samples under one seed. stop: strings that end the text (not part of it).
    logprobs: None, or how many of the best tokens' log probabilities to return beside the emitted one's (0 = that one alone).
    speculation: None for the engine's setting, or one of SPECULATION for this request.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stream_index: int = 0
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False
    speculation: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        _number("temperature", self.temperature, lambda x: 0 <= x < 1e6, "in [0, 1e6)")
        _number("top_p", self.top_p, lambda x: 0 < x <= 1, "in (0, 1]")
        _number("min_p", self.min_p, lambda x: 0 <= x <= 1, "in [0, 1]")
        _integer("top_k", self.top_k, 0, 2**31 - 1)
        _integer("seed", self.seed, -(2**63), 2**63 - 1)
        _integer("stream_index", self.stream_index, 0, 2**31 - 1)
        _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, 20)
        if not all(isinstance(s, str) and s for s in self.stop) or len(self.stop) > 16:
            raise ValueError(
                f"SamplingParams: stop must be at most 16 strings, none empty, got {list(self.stop)!r}"
            )
        if self.speculation is not None and self.speculation not in SPECULATION:
            raise ValueError(
                f"SamplingParams: speculation must be None|{'|'.join(SPECULATION)}, got {self.speculation!r}"
            )


def _number(name: str, value: Any, ok: Any, rule: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"SamplingParams: {name} must be a number, got {value!r}")
    if not math.isfinite(value) or not ok(value):
        raise ValueError(f"SamplingParams: {name} must be {rule}, got {value!r}")


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"SamplingParams: {name} must be an integer, got {value!r}")
    if not low <= value <= high:
        raise ValueError(f"SamplingParams: {name} must be in [{low}, {high}], got {value}")
