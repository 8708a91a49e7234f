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
        many(law.top_p, torch.float32), many(law.min_p, torch.float32), many(law.seed, torch.int64),
        many(law.stream, torch.int32),
    )  # fmt: skip


def wide_call(rng: random.Random) -> Call:
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
        torch.randint(0, 2**62, (rows,), generator=g),
        many([0, 1], torch.int32),
    )
    positions = many([0, 5, 99], torch.int32)
    return (z, positions, *law), {"num_logprobs": rng.choice([0, 3, 1000, 1024])}


def close_call() -> Call:
    """2000 weights 1 and 3000 weights 2/3: top_p 7/8 cuts at token 4250 or 4251 of the order. The numbers themselves pass
    the limit by 3e-11 after 4250, their sum in order misses it by 9e-11; at this position token 4251 has the best score."""
    vocab, gap, temperature = 5000, 1136734.0, 2803531.0  # exp(-gap / temperature) = 2/3 to 1e-13
    logits = torch.where(torch.arange(vocab) % 5 < 2, 0.0, -gap)[None]
    return rows_of(logits, 232, Law(temperature, 0, 0.875, 0.0, 7, 1)), {"num_logprobs": 0}


def tied_call() -> Call:
    """Tokens 567 and 2345 have the same random word at this position, above that of 6, the only other candidate."""
    logits = torch.full((1, 4097), -torch.inf)
    logits[0, [6, 567, 2345]] = 1.0
    return rows_of(logits, 1874, Law(1.0, 0, 1.0, 0.0, 3, 0)), {"num_logprobs": 4}


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
    "close cut": close_call(),
    "tied draw": tied_call(),
    "peaked": peaked_call(),
    "knife's edge": knife_edge_call(0),
    "knife's edge in a list": knife_edge_call(44),
    "flat": flat_call(),
    "ascending": ascending_call(),
}
