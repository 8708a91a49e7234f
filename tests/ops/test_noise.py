# SPDX-License-Identifier: Apache-2.0
"""The shared noise: Philox against its published vectors, exp2 and log against the math library, bounds of the noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyspec.spec import noise, pipeline

FULL = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((FULL, FULL, FULL, FULL), (FULL, FULL), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_philox_gives_the_published_vectors(
    counter: tuple[int, ...], key: tuple[int, int], want: str
) -> None:
    """Known answers of Random123's philox4x32_10."""
    words = noise.philox((torch.tensor([counter[0]]), *counter[1:]), key[0] | key[1] << 32)
    assert " ".join(f"{int(word):08x}" for word in words) == want


def test_counter_and_key_words_are_where_the_contract_says() -> None:
    g = noise.gumbel(seed=5 << 32 | 3, stream=2, position=9, vocab=11)
    words = noise.philox((torch.tensor([2]), 9, 2, noise.TOKENS), 5 << 32 | 3)
    v = (words[1].double() + 0.5) * 2.0**-32  # token 9: group 2, word 1
    assert g[9] == -noise.log(-noise.log(1 - v))


def test_noise_of_some_ids_is_that_of_all() -> None:
    """In any order, with repetitions, and up to the largest id without making those below it."""
    ids = torch.tensor([9, 2, 2, 3, 8, 0, 10])
    some = noise.exponential(5, 2, 9, ids)
    assert torch.equal(some, noise.exponential(5, 2, 9, torch.arange(11))[ids])
    words = noise.philox((torch.tensor([2**29 - 1]), 9, 2, noise.TOKENS), 5)
    v = (words[3].double() + 0.5) * 2.0**-32
    assert torch.equal(noise.exponential(5, 2, 9, torch.tensor([2**31 - 1])), -noise.log(1 - v))


def ulps(got: Tensor, want: list[float]) -> float:
    exact = torch.tensor(want, dtype=torch.float64)
    return ((got - exact).abs() / (exact.abs() * 2.0**-52)).nan_to_num().max().item()


def test_exp2_and_log_are_exact_to_a_few_units() -> None:
    x = torch.cat([-(torch.rand(20000, dtype=torch.float64) ** p) * 700 for p in (1, 4, 16)])
    assert ulps(noise.exp2(x), [2.0**v for v in x.tolist()]) <= 2
    u = torch.rand(20000, dtype=torch.float64).clamp(min=2.0**-60)
    for y in (u * 3, 1 - u**8 / 2, 1 + u**8, (700 * (2 * u - 1)).exp()):
        assert ulps(noise.log(y), [math.log(v) for v in y.tolist()]) <= 3


def test_exp2_and_log_at_the_edges() -> None:
    edge = torch.tensor([0.0, -0.0, -1.0, -1000.0, -1000.1, -torch.inf], dtype=torch.float64)
    assert noise.exp2(edge).tolist() == [1.0, 1.0, 0.5, 2.0**-1000, 2.0**-1000, 2.0**-1000]
    assert noise.log1(1.0) == 0.0


def test_noise_is_finite_and_bounded() -> None:
    r = torch.tensor([0, 1, 2, 2**31, 2**32 - 2, 2**32 - 1], dtype=torch.float64)
    g = -noise.log(-noise.log(1 - (r + 0.5) * 2.0**-32))
    assert (g.diff() < 0).all()
    assert g[0] < 22.88  # below kMaxGumbel = 23 of csrc/cpu/noise.h: no token is skipped that could win
    assert g[-1] > -3.14


def test_noise_has_the_moments_of_gumbel() -> None:
    g = torch.stack([noise.gumbel(seed=1, stream=0, position=t, vocab=5000) for t in range(40)])
    assert abs(g.mean() - 0.5772156649) < 4 * 1.2825 / 200000**0.5
    assert abs(g.var() - math.pi**2 / 6) < 0.03
    others = [
        (1, 0, 1),
        (1, 1, 0),
        (2, 0, 0),
        (1 << 32 | 1, 0, 0),
    ]  # next position, stream, seed, high half of the seed
    for seed, stream, position in others:
        other = noise.gumbel(seed=seed, stream=stream, position=position, vocab=5000)
        assert torch.corrcoef(torch.stack([g[0], other]))[0, 1].abs() < 0.06


def test_lane_sum_is_the_documented_order() -> None:
    x = torch.rand(1000, dtype=torch.float64)
    lanes = [0.0] * 32
    for i, value in enumerate(x.tolist()):
        lanes[i % 32] += value
    for half in (16, 8, 4, 2, 1):
        lanes = [lanes[i] + lanes[i + half] for i in range(half)]
    assert pipeline.lane_sum(x).item() == lanes[0]
