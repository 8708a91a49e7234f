# SPDX-License-Identifier: Apache-2.0
"""The tokens follow the processed law and are independent between positions, streams and seeds; wrong samplers are caught.

Chi-square tests at fixed seeds: a right sampler's p-value is above 1e-4 here, a planted wrong one's below 1e-9.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from contract_tests import needs_native
from scipy.stats import chisquare
from test_sample import rows_of
from torch import Tensor

from pyspec import ops
from pyspec.spec import noise
from pyspec.spec.pipeline import Law

LOGITS = torch.tensor([1.5, 0.3, -0.4, 2.0, 0.3, -1.0, 0.9, -3.0])
LAWS = [
    Law(1.0, 0, 1.0, 0.0, 5, 0),
    Law(0.7, 5, 1.0, 0.0, 5, 0),
    Law(1.2, 0, 0.8, 0.0, 6, 1),
    Law(0.9, 6, 0.95, 0.2, 7, 2),
]
DRAWS = 20000
Sampler = Callable[[Law, Tensor], Tensor]  # law, positions -> tokens

pytestmark = needs_native  # tens of thousands of calls of the specification would take minutes; its bits are the kernel's


def right(law: Law, positions: Tensor) -> Tensor:
    return ops.sample(*rows_of(LOGITS, law, positions))[0].long()


def processed(law: Law) -> Tensor:
    """The law by its textbook definition in float64."""
    p, order = (LOGITS.double() / law.temperature).softmax(0).sort(descending=True, stable=True)
    p[law.top_k or p.numel() :] = 0
    p = p / p.sum()
    p[p.cumsum(0) - p >= law.top_p] = 0
    p[p < law.min_p * p[0]] = 0
    return torch.zeros_like(p).scatter(0, order, p / p.sum())


def p_value(tokens: Tensor, law: Tensor) -> float:
    counts = torch.bincount(tokens, minlength=law.numel()).double()
    if counts[law == 0].any():
        return 0.0
    alive = law > 0
    return float(chisquare(counts[alive].numpy(), (law[alive] * tokens.numel()).numpy()).pvalue)


def pair_p_value(first: Tensor, second: Tensor, law: Law) -> float:
    p = processed(law)
    return p_value(first * p.numel() + second, torch.outer(p, p).flatten())


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_tokens_follow_the_processed_law(law: Law) -> None:
    assert p_value(right(law, torch.arange(DRAWS)), processed(law)) > 1e-4


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_positions_streams_and_seeds_are_independent(law: Law) -> None:
    even = torch.arange(0, 2 * DRAWS, 2)
    first = right(law, even)
    for second in (
        right(law, even + 1),
        right(law._replace(stream=law.stream + 1), even),
        right(law._replace(seed=law.seed + 1), even),
        right(law._replace(seed=law.seed + 2**32), even),
    ):
        assert pair_p_value(first, second, law) > 1e-4


def test_the_same_noise_at_two_positions_is_caught() -> None:
    even = torch.arange(0, 2 * DRAWS, 2)
    wrong: Sampler = lambda law, positions: right(law, positions // 2 * 2)
    for law in LAWS:
        assert p_value(wrong(law, even), processed(law)) > 1e-4  # each position alone looks right
        assert pair_p_value(wrong(law, even), wrong(law, even + 1), law) < 1e-9


def test_a_filter_on_the_extra_token_only_is_caught() -> None:
    """The planted walk draws unfiltered where it descends; token 5, which every filter here drops, is the draft's child."""
    for law in LAWS[1:]:
        positions = torch.arange(DRAWS)
        unfiltered = right(law._replace(top_k=0, top_p=1.0, min_p=0.0), positions)
        wrong = torch.where(unfiltered == 5, unfiltered, right(law, positions))
        assert processed(law)[5] == 0
        assert p_value(wrong, processed(law)) < 1e-9


def test_another_temperature_is_caught() -> None:
    for law in LAWS:
        wrong = right(law._replace(temperature=law.temperature * 0.8), torch.arange(DRAWS))
        assert p_value(wrong, processed(law)) < 1e-9


def test_float32_uniforms_that_round_to_one_are_caught() -> None:
    """At this seed and position token 138 has r = 2^32 - 99, which as a float32 fraction is 1: -log(-log(1)) always wins."""
    law, position, junk = Law(1.0, 0, 1.0, 0.0, 1, 0), 26, 138
    logits = torch.full((200,), -60.0)
    logits[0] = 0.0
    words = noise.philox((torch.arange(50), position, 0, noise.TOKENS), law.seed)
    uniform = (torch.stack(words, dim=1).flatten().double() * 2.0**-32).float()
    wrong = logits - (-uniform.log()).log()
    assert wrong.argmax() == junk
    assert ops.sample(*rows_of(logits, law, torch.tensor([position])))[0].tolist() == [0]


def test_a_token_that_only_great_noise_lifts_wins() -> None:
    """At this seed and position token 22940 has noise 19.02: no shortcut may skip it 19 below the best score."""
    law, position, rare = Law(1.0, 0, 1.0, 0.0, 1, 0), 2438, 22940
    g = noise.gumbel(law.seed, law.stream, position, rare + 1)
    assert g[rare] > 19
    for margin, winner in ((1e-3, rare), (-1e-3, 0)):
        logits = torch.full((rare + 1,), -60.0)
        logits[0], logits[rare] = 0.0, g[0] - g[rare] + margin
        assert ops.sample(*rows_of(logits, law, torch.tensor([position])))[0].tolist() == [winner]
