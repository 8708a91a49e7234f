# SPDX-License-Identifier: Apache-2.0
"""The checker against a model of its rules, on random programs: it finds a race exactly where the model has one."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from cuda_emulator import build, emulator

SOURCE = build.HERE / "fixtures/programs.cu"
READ, WRITE, BLOCK_BARRIER, WARP_BARRIER, NAMED_BARRIER = range(1, 6)
WARPS, SMEM = 3, 64
THREADS = 32 * WARPS
Step = dict[
    int, tuple[int, int, int]
]  # by thread: what, byte of shared memory, bytes; or the barrier and its threads


def program(generator: random.Random) -> list[Step]:
    """Some accesses of some threads to a few bytes, with barriers of all, of a warp or of two warps between them."""
    steps: list[Step] = []
    for _ in range(generator.randrange(4, 14)):
        kind = generator.choice((READ, READ, WRITE, WRITE, BLOCK_BARRIER, WARP_BARRIER, NAMED_BARRIER))
        if kind in (READ, WRITE):
            size = generator.choice((1, 2, 4, 16))
            place = generator.randrange(SMEM // 16) * 16 + generator.randrange(16 // size) * size
            threads = generator.sample(range(THREADS), generator.choice((1, 1, 2)) if kind == READ else 1)
            steps.append(dict.fromkeys(threads, (kind, place, size)))
        elif kind == BLOCK_BARRIER:
            steps.append(dict.fromkeys(range(THREADS), (kind, 0, 0)))
        elif kind == WARP_BARRIER:
            warp = generator.randrange(WARPS)
            steps.append({32 * warp + lane: (kind, 0, 0) for lane in range(32)})
        else:
            warps = generator.sample(range(WARPS), 2)
            barrier = 1 + sum(warps)  # each pair of warps has its own
            steps.append({32 * warp + lane: (kind, barrier, 64) for warp in warps for lane in range(32)})
    return steps


def accesses(steps: list[Step]) -> Iterator[tuple[int, int, int, set[int], list[int]]]:
    """Step, thread, what, bytes, and which step of every other thread the thread knows to be over."""
    known = [[-1] * THREADS for _ in range(THREADS)]
    for number, step in enumerate(steps):
        kinds = {kind for kind, _, _ in step.values()}
        if kinds <= {READ, WRITE}:
            for thread, (kind, place, size) in step.items():
                yield number, thread, kind, set(range(place, place + size)), known[thread]
            continue
        together = [max(known[thread][other] for thread in step) for other in range(THREADS)]
        for thread in step:
            together[thread] = number
        for thread in step:
            known[thread] = list(together)


def has_race(steps: list[Step]) -> bool:
    """Two accesses of two threads to one byte, one of them a write, of which no barrier ends one before the other."""
    seen = list(accesses(steps))
    return any(
        thread != other
        and bytes_ & other_bytes
        and WRITE in (kind, other_kind)
        and known[other] < other_number
        for i, (_, thread, kind, bytes_, known) in enumerate(seen)
        for other_number, other, other_kind, other_bytes, _ in seen[:i]
    )


def finds_race(steps: list[Step]) -> bool:
    tensor = torch.zeros(len(steps), THREADS, 3, dtype=torch.int32)
    for number, step in enumerate(steps):
        for thread, what in step.items():
            tensor[number, thread] = torch.tensor(what)
    out = torch.zeros(THREADS, dtype=torch.int32)
    try:
        emulator.run(
            SOURCE, "interpret_all", {"steps": tensor}, {"out": out}, len(steps), THREADS, SMEM, checked=True
        )
    except emulator.EmulatorError as error:
        if error.kinds == {"race"}:
            return True
        raise
    return False


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_races_are_those_of_the_model(order: str) -> None:
    generator = random.Random(order)
    races = 0
    with emulator.schedule(order=order):
        for number in range(150):
            steps = program(generator)
            want = has_race(steps)
            races += want
            assert finds_race(steps) == want, f"program {number} of {order}: {steps}"
    assert 30 < races < 120  # both kinds are there
