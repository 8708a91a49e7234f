# SPDX-License-Identifier: Apache-2.0
"""Calls of sample on the edge: cuts that rounding decides, ties of the noise, sums whose last bits show, wide nuclei."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from pyspec.spec import noise, pipeline
from pyspec.spec.pipeline import Law

Call = tuple[tuple[Tensor, ...], dict[str, int]]


def rows_of(logits: Tensor, position: int, law: Law) -> tuple[Tensor, ...]:
    """Arguments of `sample`: every row under one law."""
    n = logits.size(0)
    many = lambda value, dtype: torch.full((n,), value, dtype=dtype)
    return (
        logits, many(position, torch.int32), many(law.temperature, torch.float32), many(law.top_k, torch.int32),
        many(law.top_p, torch.float32), many(law.min_p, torch.float32), many(law.typical_p, torch.float32),
        many(law.seed, torch.int64), many(law.stream, torch.int32),
    )  # fmt: skip


def wide_call(rng: random.Random, typical: bool = True) -> Call:
    """Rows of 1025 to 9000 tokens whose filters keep thousands: smooth, tied, sorted either way, mostly masked."""
    vocab, rows = rng.choice([1025, 2047, 2048, 2049, 4097, 9000]), 2
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    z = torch.randn(rows, vocab, generator=g) * rng.choice([0.0, 0.01, 0.3, 1.0, 3.0])
    if steps := rng.choice([0, 1, 4, 64]):
        z = (z * steps).round() / steps
    if rng.random() < 0.3:
        z = z.sort(-1, descending=rng.random() < 0.3).values
    if rng.random() < 0.3:
        masked = torch.rand(vocab, generator=g) < rng.choice([0.1, 0.9])
        z[:, masked] = rng.choice([-torch.inf, torch.nan, torch.inf])
    many = lambda values, dtype: torch.tensor([rng.choice(values) for _ in range(rows)], dtype=dtype)
    law = (
        many([0.3, 1.0, 1.0, 7.0, 100.0], torch.float32),
        many([0, 0, 1000, 1024, 1025, min(1500, vocab), vocab - 1, vocab], torch.int32),
        many([1.0, 0.999, 0.95, 0.7, 0.5, 0.25, 0.125], torch.float32),
        many([0.0, 0.0, 0.1, 0.9], torch.float32),
        many([1.0, 1.0, 0.99, 0.9, 0.5, 0.01] if typical else [1.0], torch.float32),
        torch.randint(0, 2**62, (rows,), generator=g),
        many([0, 1], torch.int32),
    )
    positions = many([0, 5, 99], torch.int32)
    return (z, positions, *law), {"num_logprobs": rng.choice([0, 3, 1000, 1024])}


def close_call(gap: float, temperature: float) -> Call:
    """2000 weights 1 and 3000 weights exp(-gap / temperature) = 2/3 (to 1e-13): top_p 7/8 cuts within 1e-10 of token 4250 of
    the order. At this position the token after it, 3752, has the best score."""
    logits = torch.where(torch.arange(5000) % 5 < 2, 0.0, -gap)[None]
    return rows_of(logits, 232, Law(temperature, 0, 0.875, 0.0, 7, 1)), {"num_logprobs": 0}


def close_typical_call(gap: float, temperature: float) -> Call:
    """3500 weights 1 and 750 weights 2/3 (to 1e-13), which are farther from the entropy: whether typical_p 7/8 keeps those too
    goes by the last bits of the sum. At some of these positions one of them has the best score."""
    logits = torch.where(torch.arange(4250) % 17 < 14, 0.0, -gap)[None].repeat(40, 1)
    logits, _, *law = rows_of(logits, 0, Law(temperature, 0, 1.0, 0.0, 7, 1, typical_p=0.875))
    return (logits, torch.arange(40, dtype=torch.int32), *law), {"num_logprobs": 0}


def close_typical_sum_call(gap: float, temperature: float) -> Call:
    """4500 weights 2/3 (to 1e-13), which are nearest to the entropy, and 1000 weights 1: whether typical_p 3/4 keeps those too goes by
    the last bits of a sum of the former in order."""
    logits = torch.where(torch.arange(5500) % 11 < 9, -gap, 0.0)[None].repeat(12, 1)
    logits, _, *law = rows_of(logits, 0, Law(temperature, 0, 1.0, 0.0, 7, 1, typical_p=0.75))
    return (logits, torch.arange(12, dtype=torch.int32), *law), {"num_logprobs": 0}


def boundary_call(tied: bool, top_k: int, top_p: float, inside: int, outside: int) -> Call:
    """Filters that keep more than a list holds. At one position the last token kept has the best score of those kept, at
    the other the first one dropped would have."""
    z = torch.zeros(1100) if tied else torch.linspace(0, -1, 1100)[torch.arange(1100) * 37 % 1100]
    logits, _, *law = rows_of(z.repeat(2, 1), 0, Law(1.0, top_k, top_p, 0.0, 6, 0))
    return (logits, torch.tensor([inside, outside], dtype=torch.int32), *law), {"num_logprobs": 0}


def tied_call(vocab: int, position: int, ids: list[int]) -> Call:
    """Three candidates: the first has a smaller score, the others have the same random word at this position."""
    logits = torch.full((1, vocab), -torch.inf)
    logits[0, ids] = 1.0
    return rows_of(logits, position, Law(1.0, 0, 1.0, 0.0, 3, 0)), {"num_logprobs": 4}


def peaked_call() -> Call:
    """The sum is 1 + n 2^-52, n some thousands: its last bits, and with them the order of its additions, are what a
    logprob of the likeliest token shows."""
    g = torch.Generator().manual_seed(9)
    logits = -36 + torch.rand(4, 5000, generator=g)
    logits[:, 77] = 0
    return rows_of(logits, 1, Law(0.0, 0, 1.0, 0.0, 0, 0)), {"num_logprobs": 0}


def knife_edge_call(top_k: int) -> Call:
    """44 weights whose sum is 2 in the order of lane_sum and 2 + 2^-51 in others: half of it keeps the first token, of
    weight 1, or two tokens."""
    g = torch.Generator().manual_seed(69)
    z = torch.full((200,), -torch.inf)
    ids = torch.randperm(200, generator=g)[:44]
    z[ids] = -3.2 - 2 * torch.rand(44, generator=g)
    z[ids[0]], z[ids[1:4]] = 0.0, -torch.inf
    for i in ids[1:4].tolist():  # each takes what is missing to 2, to 24 bits and not more
        weights = noise.exp2(z.double() * noise.LOG2E)[z > -torch.inf]
        missing = 2 - math.fsum(weights.tolist())
        value = torch.tensor(math.log(missing))
        z[i] = value if math.exp(value) <= missing else value.nextafter(torch.tensor(-torch.inf))
    assert pipeline.lane_sum(noise.exp2(z.double() * noise.LOG2E)) == 2
    logits, _, *law = rows_of(z.repeat(24, 1), 0, Law(1.0, top_k, 0.5, 0.0, 2, 0))
    return (logits, torch.arange(24, dtype=torch.int32), *law), {"num_logprobs": 0}


def flat_call() -> Call:
    """Three equal logits: the draw goes by small differences of the noise."""
    logits, _, *law = rows_of(torch.zeros(64, 3), 0, Law(1.0, 0, 1.0, 0.0, 4, 0))
    return (logits, torch.arange(64, dtype=torch.int32), *law), {"num_logprobs": 0}


def ascending_call() -> Call:
    """Every chunk is better than all before it: the list of the best fills again and again."""
    logits = torch.linspace(-9, 9, 12300)[None].repeat(2, 1)
    return rows_of(logits, 4, Law(1.0, 900, 0.9, 0.0, 1, 1)), {"num_logprobs": 5}


EDGES = {
    # the numbers pass the limit by 3e-11 after 4250 tokens, their sum in order misses it by 9e-11: 4251 are kept
    "close cut": close_call(1136734.0, 2803531.0),
    # the numbers miss it by 3e-11, their sum in order passes it by 5e-10: 4250
    "close cut from below": close_call(1656001.0, 4084201.0),
    "close typical cut": close_typical_call(1136734.0, 2803531.0),
    "close typical cut from below": close_typical_call(1656001.0, 4084201.0),
    "close typical sum": close_typical_sum_call(1754201.0, 4326392.0),
    "close typical sum from below": close_typical_sum_call(1482912.0, 3657311.0),
    "last of top-k": boundary_call(False, 1050, 1.0, 278, 818),
    "last of top-k, tied": boundary_call(True, 1050, 1.0, 890, 693),
    "last of top-p": boundary_call(False, 0, 0.9, 3156, 342),
    "last of top-p, tied": boundary_call(True, 0, 0.9, 715, 1284),
    "tied draw": tied_call(4097, 1874, [6, 567, 2345]),
    "tied draw of one CUDA thread": tied_call(262144, 54, [3, 75767, 210933]),
    "peaked": peaked_call(),
    "knife's edge": knife_edge_call(0),
    "knife's edge in a list": knife_edge_call(44),
    "flat": flat_call(),
    "ascending": ascending_call(),
}
