# SPDX-License-Identifier: Apache-2.0
"""What a request asks of the sampler, validated when it is made."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspec.engine.grammar import Grammar

SPECULATION = ("off", "auto", "always", "suffix", "ngram", "random")
MAX_IDS = 2**19  # tokens that one request may name: more than any vocabulary in use
MAX_SAMPLES = 1024
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 4096
MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class SamplingParams:
    """Sampling of one request. The same seed gives the same tokens with and without speculation, in any batch.

    What changes the logits, in this order: repetition_penalty (1 is off) divides a positive logit and multiplies a negative one of
    every token of the prompt or the answer so far; frequency_penalty times a token's count in the answer, then presence_penalty
    if it is there at all, are subtracted; logit_bias (token id to a finite number or -inf) is added; banned_tokens, all but
    allowed_tokens (None: all), tokens that would end an answer of fewer than min_tokens tokens, and what grammar does not
    allow get -inf. Then temperature (0 is greedy), top_k (0 is off), top_p (1), min_p (0) and typical_p (1).

    seed, stream_index: which sample; n samples of one prompt are those of stream_index, stream_index + 1, ...
    max_tokens and min_tokens: length of the answer, its end token counted. ignore_eos: the model's own end tokens do not end it.
    stop: strings that end the text (not part of it), looked for behind the first min_tokens tokens. stop_token_ids: tokens that end
    it (in token_ids, not in the text). grammar: what the whole text must match; once nothing can follow, the answer ends.
    logprobs: None, or how many of the best tokens' log probabilities to return beside the emitted one's (0 = that one alone);
    they are the model's own, before all of the above. speculation: None for the engine's setting, or one of SPECULATION.

    ValueError or TypeError names the field, its rule and the value. Ids are checked against the vocabulary when a model gets them.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()  # kept as pairs
    banned_tokens: Collection[int] = ()
    allowed_tokens: Collection[int] | None = None
    grammar: Grammar | None = None
    seed: int = 0
    stream_index: int = 0
    n: int = 1
    max_tokens: int = 128
    min_tokens: int = 0
    stop: Sequence[str] = ()  # one string or several
    stop_token_ids: Collection[int] = ()
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
        _number("typical_p", self.typical_p, lambda x: 0 < x <= 1, "in (0, 1]")
        _number("repetition_penalty", self.repetition_penalty, lambda x: 1e-3 <= x <= 1e3, "in [0.001, 1000]")
        for name in ("presence_penalty", "frequency_penalty"):
            _number(name, getattr(self, name), lambda x: abs(x) <= 1e3, "in [-1000, 1000]")
        _integer("top_k", self.top_k, 0, 2**31 - 1)
        _integer("seed", self.seed, -(2**63), 2**63 - 1)
        _integer("n", self.n, 1, MAX_SAMPLES)
        _integer("stream_index", self.stream_index, 0, 2**31 - self.n)
        _integer("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _integer("min_tokens", self.min_tokens, 0, self.max_tokens)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, 20)
        if not all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_CHARACTERS for s in self.stop) or (
            len(self.stop) > MAX_STOPS
        ):
            raise ValueError(
                f"SamplingParams: stop must be at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARACTERS} characters, "
                f"got {_short(list(self.stop))}"
            )
        if self.speculation is not None and self.speculation not in SPECULATION:
            raise ValueError(
                f"SamplingParams: speculation must be None|{'|'.join(SPECULATION)}, got {self.speculation!r}"
            )
        object.__setattr__(self, "logit_bias", _bias(self.logit_bias))
        for name in ("banned_tokens", "stop_token_ids"):
            object.__setattr__(self, name, _ids(name, getattr(self, name)))
        if self.allowed_tokens is not None:
            object.__setattr__(self, "allowed_tokens", _ids("allowed_tokens", self.allowed_tokens))
            if not self.allowed_tokens:
                raise ValueError(
                    "SamplingParams: allowed_tokens must be None or at least one token, got none"
                )
        if self.grammar is not None:
            self._check_grammar()

    def _check_grammar(self) -> None:
        if not isinstance(self.grammar, Grammar):
            raise TypeError(f"SamplingParams: grammar must be a Grammar or None, got {_short(self.grammar)}")
        if self.ignore_eos:
            raise ValueError(
                "SamplingParams: ignore_eos must be False with a grammar, which may allow nothing but the end, got True"
            )

    @property
    def edits(self) -> tuple[str, ...]:
        """The fields in use that change logits before the filters."""
        values = {
            "repetition_penalty": self.repetition_penalty != 1, "presence_penalty": self.presence_penalty != 0,
            "frequency_penalty": self.frequency_penalty != 0, "logit_bias": bool(self.logit_bias),
            "banned_tokens": bool(self.banned_tokens), "allowed_tokens": self.allowed_tokens is not None,
            "min_tokens": self.min_tokens > 0, "grammar": self.grammar is not None,
        }  # fmt: skip
        return tuple(name for name, used in values.items() if used)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _number(name: str, value: Any, ok: Callable[[float], bool], rule: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"SamplingParams: {name} must be a number, got {_short(value)}")
    if not abs(value) <= sys.float_info.max or not ok(value):
        raise ValueError(f"SamplingParams: {name} must be {rule}, got {_short(value)}")


def _integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"SamplingParams: {name} must be an integer, got {_short(value)}")
    if not low <= value <= high:
        raise ValueError(f"SamplingParams: {name} must be in [{low}, {high}], got {_short(value)}")


def _ids(name: str, values: Any) -> tuple[int, ...]:
    """Token ids, each once, ascending."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Collection):
        raise TypeError(f"SamplingParams: {name} must be a collection of token ids, got {_short(values)}")
    if len(values) > MAX_IDS:
        raise ValueError(f"SamplingParams: {name} must be at most {MAX_IDS} tokens, got {len(values)}")
    for value in values:
        _integer(name, value, 0, MAX_ID)
    return tuple(sorted(set(values)))


def _bias(values: Any) -> tuple[tuple[int, float], ...]:
    """(token, bias) pairs by token, from a mapping or from such pairs."""
    if not isinstance(values, Mapping):
        try:
            values = dict(values)
        except (TypeError, ValueError):
            raise TypeError(
                f"SamplingParams: logit_bias must be a mapping of token ids to numbers, got {_short(values)}"
            ) from None
    _ids("logit_bias", values.keys())
    for value in values.values():
        if value != -math.inf:
            _number("logit_bias", value, lambda x: abs(x) <= 1e6, "-inf or in [-1e6, 1e6]")
    return tuple(sorted((token, float(value)) for token, value in values.items()))
