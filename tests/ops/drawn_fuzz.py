# SPDX-License-Identifier: Apache-2.0
"""Random calls of draw_children and verify_drawn, hard rows; as a program, kernels against specifications."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from sampling_fuzz import SEEDS, TEMPERATURES, bits, edited_rows, law_tensors, logprobs_of, row
from torch import Tensor

from pyspec import spec
from pyspec.spec.draw_children import RULES
from pyspec.spec.rejection import DETERMINISTIC, IID, WALKS, WITHOUT_REPLACEMENT

Call = tuple[tuple[Tensor, ...], dict[str, Any]]


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def rows_of(rng: random.Random, count: int, vocab: int) -> Tensor:
    return torch.stack([row(rng, vocab) for _ in range(count)]) if count else torch.empty(0, vocab)


def children_call(rng: random.Random) -> Call:
    vocab = rng.choice([1, 2, 3, 31, 32, 33, 64, 65, 257, rng.randint(1, 5000)])
    rows, width = rng.randint(0, 4), rng.choice([1, 2, 5, 40])
    many = lambda values: [rng.choice(values) for _ in range(rows)]
    args = (
        rows_of(rng, rows, vocab), ints([rng.randint(0, width) for _ in range(rows)]),
        torch.tensor(many(TEMPERATURES)), torch.tensor(many(SEEDS), dtype=torch.int64), ints(many([0, 1, -1])),
        ints(many([0, 1, 2**31 - 1])), ints(many([0, 1, 63, 2**24 - 1])),
    )  # fmt: skip
    return args, {"width": width, "rule": rng.choice(RULES)}


def tree(rng: random.Random, size: int, vocab: int) -> tuple[list[int], list[int], list[int]]:
    """Tokens, parents and how drawn: nodes below one parent all iid or none, tokens that differ unless iid."""
    tokens, parents, drawn = [rng.randrange(vocab)], [-1], [DETERMINISTIC]
    iid = [rng.random() < 0.3 for _ in range(size)]
    used: list[set[int]] = [set() for _ in range(size)]
    while len(tokens) < size:
        newest = len(tokens) - 1
        parent = rng.randint(max(0, newest - 3), newest)
        if not iid[parent] and len(used[parent]) == vocab:
            parent = newest
        token = rng.choice([x for x in range(vocab) if iid[parent] or x not in used[parent]])
        used[parent].add(token)
        tokens.append(token)
        parents.append(parent)
        drawn.append(IID if iid[parent] else rng.choice([DETERMINISTIC, WITHOUT_REPLACEMENT]))
    return tokens, parents, drawn


def verify_call(rng: random.Random) -> Call:
    vocab, batch = rng.choice([1, 2, 3, 7, 40, 100]), rng.randint(0, 4)
    trees = [
        tree(rng, size, vocab) if (size := rng.choice([0, 1, 2, 9, 25])) else ([], [], [])
        for _ in range(batch)
    ]
    sizes = [len(tokens) for tokens, _, _ in trees]
    nodes = sum(sizes)
    logits = rows_of(rng, nodes, vocab)
    if rng.random() < 0.5 and nodes:  # a draft that resembles the target
        draft = logits + rng.choice([0.0, 0.3, 2.0]) * torch.randn(
            logits.shape, generator=torch.Generator().manual_seed(nodes)
        )
    else:
        draft = rows_of(rng, nodes, vocab)
    join = lambda part: ints([x for t in trees for x in t[part]])
    order = list(range(nodes))
    rng.shuffle(order)
    step, *law = law_tensors(rng, batch, vocab)
    heat = torch.tensor([rng.choice(TEMPERATURES) for _ in range(batch)])
    args = (
        logits, join(0), join(1), ints([sum(sizes[:b]) for b in range(batch + 1)]), join(2), draft, ints(order), heat,
        step, *law, *edited_rows(rng, logits),
    )  # fmt: skip
    kwargs = {"walk": rng.choice(WALKS), "max_path": max(sizes, default=0) + rng.randint(0, 2)}
    return args, {**kwargs, **logprobs_of(rng, min(vocab, 3))}


def differences(calls: int, seed: int) -> Iterator[str]:
    """What differs between kernel and specification in any bit, over `calls` random calls."""
    rng = random.Random(seed)
    for i in range(calls):
        op, make = rng.choice([(spec.draw_children, children_call), (spec.verify_drawn, verify_call)])
        args, kwargs = make(rng)
        want, got = op.run(*args, **kwargs), getattr(torch.ops.pyspec, op.name)(*args, **kwargs)
        for term, a, b in zip(op.outputs, want, got, strict=True):
            if a.shape != b.shape or not torch.equal(bits(a), bits(b)):
                yield f"call {i} of seed {seed}: {op.name} {term.name} want {a.tolist()} got {b.tolist()}"


if __name__ == "__main__":
    found = list(differences(int(sys.argv[1]), int(sys.argv[2])))
    print("\n".join(found[:5]))
    sys.exit(bool(found))
