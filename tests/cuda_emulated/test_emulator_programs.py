# SPDX-License-Identifier: Apache-2.0
"""The checker against models of its rules, on random programs: it finds a race exactly where a model has one."""

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


# Between blocks. The blocks of a launch run one after another, and thread 0 alone executes atomics.
READ_GLOBAL, WRITE_GLOBAL, BARRIER, FENCE, ATOMIC = range(1, 6)
BLOCKS, BLOCK_THREADS, WORDS = 3, 64, 3
BlockStep = tuple[int, list[int], int]  # what, threads of the block that do it, element


def block_program(generator: random.Random) -> list[BlockStep]:
    """Takes over by an atomic, accesses memory, hands over behind a fence; now and then a step of it is missing."""
    everyone, one = list(range(BLOCK_THREADS)), [generator.choice((0, 0, 5, 40))]
    fences = [(FENCE, [0], 0)] if generator.random() < 0.7 else [(FENCE, everyone, 0), (BARRIER, everyone, 0)]
    counter = int(generator.random() < 0.1)
    accesses = [
        (generator.choice((READ_GLOBAL, WRITE_GLOBAL)), one, generator.randrange(WORDS)) for _ in range(2)
    ]
    barrier = (BARRIER, everyone, 0)
    take, hand = (ATOMIC, [0], counter), (ATOMIC, [0], 0)
    steps = [take, barrier, *accesses, barrier, *fences, hand, *accesses[: generator.random() < 0.1]]
    return [step for step in steps if generator.random() < 0.93]


class BlockModel:
    """Which accesses of a launch a thread knows to be over, by thread (of all blocks) its latest known time."""

    def __init__(self) -> None:
        self.time = 0
        self.counters: dict[int, dict[int, int]] = {}  # what atomics of a counter have handed over
        self.accesses: list[tuple[int, int, int, int]] = []  # time, thread, kind, element
        self.races = 0
        self.perhaps = 0  # those that the checker may miss: see README.md

    def run(self, block: int, steps: list[BlockStep]) -> None:
        first = block * BLOCK_THREADS
        own = range(first, first + BLOCK_THREADS)
        known: dict[int, dict[int, int]] = {thread: {} for thread in own}
        fence: dict[int, dict[int, int]] = {}  # what a thread knew at its last fence
        unfenced: set[int] = set()
        fenced = {0: 0, 1: 0}  # by warp: until when its accesses are behind fences of their own
        acquired: dict[int, int] = {}
        for kind, threads, element in steps:
            self.time += 1
            for thread in (first + t for t in threads):
                if kind in (READ_GLOBAL, WRITE_GLOBAL):
                    self.access(thread, kind, element, known[thread], bool(acquired))
                    unfenced |= {thread} if kind == WRITE_GLOBAL else set()
                elif kind == FENCE:
                    fence[thread] = {**known[thread], thread: self.time}
                    unfenced.discard(thread)
                elif kind == ATOMIC:
                    handed = self.counters.setdefault(element, {})
                    seen = {u: t for u, t in handed.items() if u not in own}
                    acquired = join(acquired, seen)
                    known[thread] = join(known[thread], seen)
                    released = dict(fence.get(thread, {}))
                    for u in own:
                        until = self.time if u == thread else known[thread].get(u, 0)
                        released[u] = max(released.get(u, 0), min(until, fenced[(u - first) // 32]))
                    if any(released[u] for u in own):
                        self.counters[element] = join(handed, released, acquired)
            if kind == BARRIER:
                together = join(*known.values(), dict.fromkeys(own, self.time))
                known = {thread: dict(together) for thread in own}
                for warp in (0, 1):
                    if not any((u - first) // 32 == warp for u in unfenced):
                        fenced[warp] = self.time

    def access(self, thread: int, kind: int, element: int, known: dict[int, int], has_acquired: bool) -> None:
        for time, other, other_kind, other_element in self.accesses:
            if other == thread or other_element != element or WRITE_GLOBAL not in (kind, other_kind):
                continue
            if known.get(other, 0) < time:
                elsewhere = other // BLOCK_THREADS != thread // BLOCK_THREADS
                self.perhaps += elsewhere and has_acquired and other_kind == READ_GLOBAL
                self.races += not (elsewhere and has_acquired and other_kind == READ_GLOBAL)
        self.accesses.append((self.time, thread, kind, element))


def join(*knowledge: dict[int, int]) -> dict[int, int]:
    joined: dict[int, int] = {}
    for one in knowledge:
        for thread, time in one.items():
            joined[thread] = max(joined.get(thread, 0), time)
    return joined


def finds_race_between_blocks(programs: list[list[BlockStep]]) -> bool:
    count = max(map(len, programs))
    steps = torch.zeros(count, BLOCKS, BLOCK_THREADS, 2, dtype=torch.int32)
    for block, program_ in enumerate(programs):
        for number, (kind, threads, element) in enumerate(program_):
            steps[number, block, threads] = torch.tensor((kind, element), dtype=torch.int32)
    memory, counters = torch.zeros(WORDS, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    out = torch.zeros(BLOCKS * BLOCK_THREADS, dtype=torch.int32)
    outputs = {"memory": memory, "counters": counters, "out": out}
    try:
        emulator.run(
            SOURCE, "interpret_blocks", {"steps": steps}, outputs, count, BLOCKS, BLOCK_THREADS, checked=True
        )
    except emulator.EmulatorError as error:
        if error.kinds == {"race"}:
            return True
        raise
    return False


@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_races_between_blocks_are_those_of_the_model(order: str) -> None:
    generator = random.Random(order)
    races = 0
    with emulator.schedule(order=order):
        for number in range(300):
            programs = [block_program(generator) for _ in range(BLOCKS)]
            model = BlockModel()
            for block in range(BLOCKS) if order == "forward" else reversed(range(BLOCKS)):
                model.run(block, programs[block])
            found = finds_race_between_blocks(programs)
            races += found
            if model.races or not model.perhaps:
                assert found == bool(model.races), f"programs {number} of {order}: {programs}"
    assert 60 < races < 240  # most of the others hand elements over
