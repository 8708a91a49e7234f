# SPDX-License-Identifier: Apache-2.0
"""Random hard rows and laws for sample and verify_tree; run as a program it compares kernel and specification bit by bit."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from pyspec import spec

TEMPERATURES = [0.0, 1e-5, 2.0**-16, 0.03, 0.3, 0.7, 1.0, 1.0, 1.9, 50.0, 3e38]
TOP_P = [1.0, 1.0, 0.999999, 0.95, 0.7, 0.3, 1e-3, 1e-40]
MIN_P = [0.0, 0.0, 1e-40, 1e-6, 0.02, 0.1, 0.5, 1.0]
TYPICAL_P = [1.0, 1.0, 0.999, 0.95, 0.6, 0.2, 1e-3]
SEEDS = [0, -1, 2**63 - 1, -(2**63), 0x123456789]


def row(rng: random.Random, vocab: int) -> Tensor:
    """One row: smooth, tied, peaked, with special values, or without any finite one."""
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    z = torch.randn(vocab, generator=g) * rng.choice([0.01, 1.0, 3.0, 10.0])
    kind = rng.randrange(10)
    if kind == 0:
        z = (z * 2).round() / 2  # many ties
    elif kind == 1:
        z[rng.randrange(vocab)] += 30
    elif kind == 2:
        z.fill_(rng.choice([0.0, -7.5, -torch.inf, torch.inf, torch.nan]))
    elif kind == 3:
        z = z * rng.choice([1e38, 1e-38, 1e-42])  # sums that would overflow; denormals
    if rng.random() < 0.3:
        for value in (torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-45):
            if rng.random() < 0.3:
                z[torch.rand(vocab, generator=g) < rng.choice([0.02, 0.5])] = value
    return z


def law_tensors(rng: random.Random, rows: int, vocab: int, typical: bool = True) -> tuple[Tensor, ...]:
    """position, temperature, top_k, top_p, min_p, typical_p (1 unless `typical`), seed, stream [rows]."""
    many = lambda values, dtype: torch.tensor([rng.choice(values) for _ in range(rows)], dtype=dtype)
    top_k = [0, 0, 1, min(2, vocab), rng.randint(1, vocab), vocab]
    return (
        many([0, 1, 77, 4095, 2**31 - 1], torch.int32), many(TEMPERATURES, torch.float32), many(top_k, torch.int32),
        many(TOP_P, torch.float32), many(MIN_P, torch.float32), many(TYPICAL_P if typical else [1.0], torch.float32),
        many(SEEDS + [rng.randrange(2**62)], torch.int64), many([0, 1, -1], torch.int32),
    )  # fmt: skip


def edited_rows(rng: random.Random, logits: Tensor) -> tuple[Tensor, ...]:
    """Sometimes rows to pick from: the same less some tokens, or others altogether."""
    rows, vocab = logits.shape
    kind = rng.randrange(4)
    if kind == 0:
        return (torch.stack([row(rng, vocab) for _ in range(rows)]),) if rows else ()
    g = torch.Generator().manual_seed(rng.randrange(2**31))
    masked = torch.rand(rows, vocab, generator=g) < rng.choice([0.01, 0.5, 1.0])
    return (logits.masked_fill(masked, -torch.inf),) if kind == 1 else ()


def sample_call(rng: random.Random, full: bool = True) -> tuple[tuple[Tensor, ...], dict[str, int]]:
    """Random rows and laws; `full`: with typical-p and edited rows."""
    vocab = rng.choice([1, 2, 3, 5, 31, 32, 33, 63, 64, 65, 100, 257, 1000, rng.randint(1, 6000)])
    rows = rng.randint(1, 4)
    logits = torch.stack([row(rng, vocab) for _ in range(rows)])
    edited = edited_rows(rng, logits) if full else ()
    return (logits, *law_tensors(rng, rows, vocab, full), *edited), logprobs_of(rng, min(vocab, 20))


def logprobs_of(rng: random.Random, most: int) -> dict[str, int]:
    wanted = rng.random() < 0.8
    return {"num_logprobs": rng.randint(0, most) if wanted else 0, "with_logprobs": wanted}


def tree_call(rng: random.Random, full: bool = True) -> tuple[tuple[Tensor, ...], dict[str, int]]:
    vocab, batch = rng.choice([1, 2, 3, 40]), rng.randint(0, 4)
    sizes = [rng.choice([0, 1, 2, 9, 30]) for _ in range(batch)]
    parents = [rng.randint(max(0, i - 4), i - 1) if i else -1 for size in sizes for i in range(size)]
    nodes = sum(sizes)
    logits = torch.stack([row(rng, vocab) for _ in range(nodes)]) if nodes else torch.empty(0, vocab)
    ints = lambda values: torch.tensor(values, dtype=torch.int32)
    tokens = ints([rng.randrange(vocab) for _ in range(nodes)])
    cu_t = ints([sum(sizes[:b]) for b in range(batch + 1)])
    kwargs = {
        "max_path": max(sizes, default=0) + rng.randint(0, 2),
        **logprobs_of(rng, min(vocab, 3)),
    }
    edited = edited_rows(rng, logits) if full else ()
    laws = law_tensors(rng, batch, vocab, full)
    return (logits, tokens, ints(parents), cu_t, *laws, *edited), kwargs


def differences(calls: int, seed: int) -> Iterator[str]:
    """What differs between kernel and specification in any bit, over `calls` random calls."""
    rng = random.Random(seed)
    for i in range(calls):
        op, make = rng.choice([(spec.sample, sample_call), (spec.verify_tree, tree_call)])
        args, kwargs = make(rng)
        want, got = op.run(*args, **kwargs), getattr(torch.ops.pyspec, op.name)(*args, **kwargs)
        for term, a, b in zip(op.outputs, want, got, strict=True):
            if a.shape != b.shape or not torch.equal(bits(a), bits(b)):
                yield f"call {i} of seed {seed}: {op.name} {term.name} want {a.tolist()} got {b.tolist()}"


def bits(t: Tensor) -> Tensor:
    """Integers that are equal where the values are: float bits, with one NaN."""
    return torch.where(t.isnan(), torch.nan, t).view(torch.int32) if t.is_floating_point() else t


if __name__ == "__main__":
    found = list(differences(int(sys.argv[1]), int(sys.argv[2])))
    print("\n".join(found[:5]))
    sys.exit(bool(found))
