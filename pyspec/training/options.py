# SPDX-License-Identifier: Apache-2.0
"""What a training run is asked for, validated when it is made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

DTYPES = ("bf16", "f32")


@dataclass(frozen=True)
class TrainOptions:
    """Sizes of the head and of its training; ValueError names the option, rule and value.

    intermediate_size, draft_vocab_size   of the head; taps: tapped layers, None for 2, n // 2 and n - 3
    steps       optimiser steps, over which the learning rate rises (the first `warmup` part) and falls as a cosine
    batch_rows  answer tokens of a step; max_length: tokens of a text, the rest is cut off
    unroll      draft steps that are trained; step k weighs decay ** k. In the first `single` part of the steps only the first one
                is, which costs a third and which all others build on
    dtype       what matrices are multiplied in; weights and optimiser are f32
    held_out    one sample in this many is for validation
    """

    intermediate_size: int = 1536
    draft_vocab_size: int = 4096
    taps: tuple[int, ...] | None = None
    steps: int = 2000
    batch_rows: int = 1024
    max_length: int = 512
    unroll: int = 4
    single: float = 0.5
    decay: float = 0.8
    learning_rate: float = 2e-3
    warmup: float = 0.03
    weight_decay: float = 0.01
    clip: float = 1.0
    dtype: str = "bf16"
    seed: int = 0
    held_out: int = 32
    validate_every: int = 100
    save_every: int = 50

    def __post_init__(self) -> None:
        for name, low, high in (
            ("intermediate_size", 1, 1 << 20), ("draft_vocab_size", 1, 1 << 22), ("steps", 1, 1 << 30), ("batch_rows", 1, 1 << 20),
            ("max_length", 4, 1 << 16), ("unroll", 1, 16), ("seed", 0, 2**63 - 1), ("held_out", 2, 1 << 20),
            ("validate_every", 1, 1 << 30), ("save_every", 1, 1 << 30),
        ):  # fmt: skip
            value = getattr(self, name)
            ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
            _check(ok, name, f"an integer in [{low}, {high}]", value)
        for name, low_float, high_float in (
            ("single", 0.0, 1.0), ("decay", 0.0, 1.0), ("learning_rate", 0.0, 1.0), ("warmup", 0.0, 1.0), ("weight_decay", 0.0, 1.0), ("clip", 0.0, 1e6),
        ):  # fmt: skip
            number = getattr(self, name)
            ok = (
                isinstance(number, (int, float))
                and math.isfinite(number)
                and low_float <= number <= high_float
            )
            _check(ok, name, f"in [{low_float:g}, {high_float:g}]", number)
        _check(self.clip > 0, "clip", "above 0", self.clip)
        _check(self.dtype in DTYPES, "dtype", "|".join(DTYPES), self.dtype)

    def learning_rate_at(self, step: int) -> float:
        """Of optimiser step `step`, from 0."""
        warm = math.ceil(self.warmup * self.steps)
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))

    def unroll_at(self, step: int) -> int:
        """Draft steps that optimiser step `step` trains."""
        return 1 if step < self.single * self.steps else self.unroll

    def described(self) -> dict[str, Any]:
        """Every option that changes the weights, as JSON has it."""
        fields = asdict(self)
        for name in ("validate_every", "save_every"):
            del fields[name]
        return {**fields, "taps": None if self.taps is None else list(self.taps)}


def _check(ok: bool, name: str, rule: str, value: object) -> None:
    if not ok:
        raise ValueError(f"train-draft: {name} must be {rule}, got {value!r}")
