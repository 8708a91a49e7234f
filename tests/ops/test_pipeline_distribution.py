# SPDX-License-Identifier: Apache-2.0
"""The whole sampling pipeline, edits and every filter: what is drawn has the support and the law of a textbook in numpy.

Fixed seeds. A right pipeline's p-value is above 1e-4 here; with a stage left out or exchanged it is below 1e-9.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from contract_tests import needs_native
from numpy.typing import NDArray
from scipy.stats import chisquare

from pyspec import ops

pytestmark = needs_native  # tens of thousands of calls of the specification would take minutes; its bits are the kernel's

VOCAB, DRAWS = 40, 40000
PROMPT, OUTPUT, DRAFT = [1, 2, 3, 3, 5], [3, 7, 9, 7], [4, 7, 4]  # the output's last token is the tree's root
LOGITS = 2.2 * np.random.default_rng(7).standard_normal(VOCAB).astype(np.float32)


@dataclass(frozen=True)
class Setting:
    """Sampling parameters; bias as (token, value), allowed None for all."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    allowed: tuple[int, ...] | None = None


SETTINGS = {
    "temperature": Setting(2.0),
    "top-k, top-p, min-p": Setting(1.3, top_k=20, top_p=0.93, min_p=0.03),
    "typical-p": Setting(1.0, typical_p=0.7),
    "typical-p drops the likeliest": Setting(1.5, typical_p=0.3),
    "every filter": Setting(1.2, top_k=25, top_p=0.95, min_p=0.02, typical_p=0.8),
    "penalties": Setting(0.9, top_p=0.95, repetition=1.4, presence=0.5, frequency=0.3),
    "rewards": Setting(1.0, top_p=0.9, repetition=0.7, presence=-0.4, frequency=-0.2),
    "bias and mask": Setting(1.0, min_p=0.01, bias=((7, 2.0), (30, -math.inf)), allowed=tuple(range(0, 40, 3)) + (7, 30)),
    "everything": Setting(
        1.1, 15, 0.97, 0.02, 0.9, 1.2, 0.2, 0.1, bias=((9, 1.5), (4, 0.5), (12, -math.inf)), allowed=tuple(range(2, 36)),
    ),
}  # fmt: skip


def textbook(s: Setting) -> NDArray[np.float64]:
    """The processed law [VOCAB]."""
    z = LOGITS.astype(np.float64)
    output = Counter(OUTPUT + DRAFT)
    for x in {*PROMPT, *output}:
        z[x] = z[x] / s.repetition if z[x] > 0 else z[x] * s.repetition
    for x, n in output.items():
        z[x] -= s.frequency * n + s.presence
    for x, value in s.bias:
        z[x] += value
    if s.allowed is not None:
        z[[x for x in range(VOCAB) if x not in s.allowed]] = -np.inf
    p = np.exp(z / s.temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    if s.top_k:
        p[order[s.top_k :]] = 0
        p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= s.top_p]] = 0
    p[p < s.min_p * p.max()] = 0
    p /= p.sum()
    if s.typical_p < 1:
        surprise = -np.log(p, where=p > 0, out=np.full(VOCAB, -np.inf))
        entropy = (p * np.where(p > 0, surprise, 0)).sum()
        nearest = np.argsort(np.abs(surprise - entropy), kind="stable")
        before = np.cumsum(p[nearest]) - p[nearest]
        p[nearest[before >= s.typical_p]] = 0
    return p / p.sum()


def draws(s: Setting, **wrong: Any) -> NDArray[np.int64]:
    """Tokens at DRAWS positions from the row of the draft's last node; `wrong` replaces arguments of edit_logits."""
    ints = lambda values: torch.tensor(values, dtype=torch.int32)
    one = lambda value: torch.tensor([value], dtype=torch.float32)
    nodes, seen = 1 + len(DRAFT), {**dict.fromkeys(PROMPT, 0), **Counter(OUTPUT)}
    bits = np.zeros(64, dtype=np.uint8)
    bits[list(s.allowed or ())] = 1
    mask = torch.from_numpy(np.packbits(bits, bitorder="little").view(np.int32))[None]
    call = {
        "logits": torch.from_numpy(LOGITS).repeat(nodes, 1), "tokens": ints([OUTPUT[-1], *DRAFT]),
        "parents": torch.arange(-1, nodes - 1).int(), "cu_t": ints([0, nodes]), "repetition": one(s.repetition),
        "presence": one(s.presence), "frequency": one(s.frequency), "history": ints(list(seen)),
        "history_count": ints(list(seen.values())), "cu_history": ints([0, len(seen)]),
        "bias_token": ints([x for x, _ in s.bias]), "bias": torch.tensor([value for _, value in s.bias]),
        "cu_bias": ints([0, len(s.bias)]), "mask": mask, "mask_row": torch.full((nodes,), 0 if s.allowed else -1).int(),
    }  # fmt: skip
    edited = ops.edit_logits(**call | wrong)[-1].expand(DRAWS, -1)
    many = lambda value, dtype: torch.full((DRAWS,), value, dtype=dtype)
    law = (
        many(s.temperature, torch.float32), many(s.top_k, torch.int32), many(s.top_p, torch.float32),
        many(s.min_p, torch.float32), many(s.typical_p, torch.float32), many(11, torch.int64), many(0, torch.int32),
    )  # fmt: skip
    logits = torch.from_numpy(LOGITS).expand(DRAWS, -1)
    return ops.sample(logits, torch.arange(DRAWS).int(), *law, edited, with_logprobs=False)[0].long().numpy()


def p_value(tokens: NDArray[np.int64], law: NDArray[np.float64]) -> float:
    counts = np.bincount(tokens, minlength=VOCAB)
    if counts[law == 0].any():
        return 0.0
    return float(chisquare(counts[law > 0], law[law > 0] * len(tokens)).pvalue)


@pytest.mark.parametrize("name", SETTINGS)
def test_distribution_of_the_pipeline(name: str) -> None:
    law, tokens = textbook(SETTINGS[name]), draws(SETTINGS[name])
    assert set(tokens.tolist()) == set(np.flatnonzero(law).tolist())
    assert p_value(tokens, law) > 1e-4


def test_distribution_of_typical_p_has_no_likeliest_token() -> None:
    setting = SETTINGS["typical-p drops the likeliest"]
    likeliest = int(LOGITS.argmax())
    assert textbook(setting)[likeliest] == 0
    assert textbook(replace(setting, typical_p=1.0)).argmax() == likeliest


@pytest.mark.parametrize("field", ["temperature", "top_k", "top_p", "min_p", "typical_p", "repetition", "presence", "frequency",
                                   "bias", "allowed"])  # fmt: skip
def test_distribution_without_a_stage_is_caught(field: str) -> None:
    """Some setting shows each: in others the remaining filters may drop what the missing one would have."""
    plain = Setting()
    caught = [
        p_value(draws(replace(s, **{field: getattr(plain, field)})), textbook(s)) < 1e-9
        for s in SETTINGS.values()
        if getattr(s, field) != getattr(plain, field)
    ]
    assert any(caught)


def test_distribution_with_states_of_other_nodes_is_caught() -> None:
    """The request's state without the path's, or the prompt counted as output."""
    law = textbook(SETTINGS["penalties"])
    root_alone = {"parents": torch.tensor([-1, 0, 0, 0]).int()}
    assert p_value(draws(SETTINGS["penalties"], **root_alone), law) < 1e-9
    all_output = {"history_count": torch.ones(len({*PROMPT, *OUTPUT})).int() * 2}
    assert p_value(draws(SETTINGS["penalties"], **all_output), law) < 1e-9
