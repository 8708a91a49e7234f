# SPDX-License-Identifier: Apache-2.0
"""The emulator finds every kind of fault, at its line, and says nothing about the same kernels without it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cuda_emulator import build, emulator

FIXTURES = build.HERE / "fixtures"
FAULTS = FIXTURES / "faults.cu"
BLOCKS = FIXTURES / "blocks.cu"
SCHEDULES = [(order, copies) for order in emulator.ORDERS for copies in emulator.COPIES]

# kernel of faults.cu: the kind of finding
KINDS = {
    "between_warps": "race",
    "within_warp": "race",
    "write_after_reads": "race",
    "halves_of_a_word": "race",
    "unwritten": "unwritten",
    "one_past_the_end": "out of bounds",
    "far_past_the_end": "out of bounds",
    "writes_an_input": "out of bounds",
    "past_shared_memory": "out of bounds",
    "two_barriers": "divergence",
    "never_met": "deadlock",
    "lacks_its_lane": "mask",
    "reads_an_absent_lane": "shuffle",
    "two_shuffles": "divergence",
    "misaligned_vector": "alignment",
    "misaligned_row": "alignment",
    "misaligned_copy": "alignment",
    "never_waited_for": "cp.async",
    "never_committed": "cp.async",
    "wrong_group": "cp.async",
    "named_pair": "race",
    "plain_beside_atomic": "race",
    "divides_by_zero": "fault",
    "traps": "trap",
}
# What the plain build finds too: it has no shadow, but guard pages, barriers, and checked operands.
WITHOUT_SHADOW = {
    "far_past_the_end", "writes_an_input", "two_barriers", "never_met", "lacks_its_lane", "reads_an_absent_lane",
    "two_shuffles", "misaligned_row", "misaligned_copy", "never_waited_for", "never_committed", "divides_by_zero", "traps",
}  # fmt: skip


def lines(source: Path, kernel: str) -> set[str]:
    """The places in a fixture that an arrow marks as a kernel's wrong ones."""
    name = source.relative_to(build.ROOT).as_posix()
    text = source.read_text().splitlines()
    return {f"{name}:{i}" for i, line in enumerate(text, 1) if line.endswith(f"// <- {kernel}")}


def run_faults(kernel: str, fault: int, checked: bool) -> torch.Tensor:
    out = torch.empty(64)
    emulator.run(FAULTS, f"{kernel}_fixture", {"x": torch.arange(61.0)}, {"out": out}, fault, checked=checked)
    return out


def run_blocks(kernel: str, fault: int, blocks: int = 5, checked: bool = True) -> torch.Tensor:
    out = torch.empty(blocks)
    outputs = {"partial": torch.zeros(blocks * 64), "arrived": torch.zeros(2, dtype=torch.int32), "out": out}
    x = torch.arange(blocks * 64.0)
    emulator.run(BLOCKS, f"{kernel}_fixture", {"x": x}, outputs, blocks, fault, checked=checked)
    return out


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
@pytest.mark.parametrize("kernel", [*KINDS, "early_exit"])
def test_right_kernel_is_silent(kernel: str, checked: bool) -> None:
    for order, copies in SCHEDULES:
        with emulator.schedule(order=order, copies=copies):
            run_faults(kernel, 0, checked)


@pytest.mark.parametrize("kernel", KINDS)
def test_fault_is_found_at_its_line(kernel: str) -> None:
    for order, copies in SCHEDULES:
        with emulator.schedule(order=order, copies=copies), pytest.raises(emulator.EmulatorError) as error:
            run_faults(kernel, 1, checked=True)
        places = {finding.place for finding in error.value.findings if finding.kind == KINDS[kernel]}
        assert places & lines(FAULTS, kernel), str(error.value)


def test_finding_says_who_did_what_where() -> None:
    """A race names both lines."""
    with pytest.raises(emulator.EmulatorError) as error:
        run_faults("between_warps", 1, checked=True)
    (read,) = lines(FAULTS, "between_warps")
    file, number = read.split(":")
    (race,) = (f for f in error.value.findings if f.kind == "race" and f.place == read)
    assert str(race) == (
        f"race: {read}: thread (32, 0, 0) of block (0, 0, 0) reads byte 0 of shared memory; no barrier, fence or atomic "
        f"orders this behind the write by thread 0 at {file}:{int(number) - 2} [between_warps]"
    )


@pytest.mark.parametrize("kernel", sorted(WITHOUT_SHADOW))
def test_fault_is_found_without_the_checker(kernel: str) -> None:
    with pytest.raises(emulator.EmulatorError) as error:
        run_faults(kernel, 1, checked=False)
    found = {(finding.kind, finding.place) for finding in error.value.findings}
    if (
        kernel == "never_committed"
    ):  # the thread exits with a copy under way, which names the line of the copy
        assert error.value.kinds == {"cp.async"}
    else:
        assert found & {(KINDS[kernel], place) for place in lines(FAULTS, kernel)}, str(error.value)


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_blocks_may_hand_over_what_is_fenced(blocks: int) -> None:
    want = torch.arange(blocks * 64.0).sum()
    for order in emulator.ORDERS:
        for checked in (False, True):
            with emulator.schedule(order=order):
                assert run_blocks("last_block_sums", 0, blocks, checked)[0] == want
                assert run_blocks("all_threads_fence", 0, blocks, checked)[0] == want
                run_blocks("atomics_only", 0, blocks, checked)
                run_blocks("same_element", 0, blocks, checked)
                run_blocks("write_after_read", 0, blocks, checked)


@pytest.mark.parametrize("order", emulator.ORDERS)
@pytest.mark.parametrize(
    ("kernel", "fault"),
    [("last_block_sums", 1), ("last_block_sums", 2), ("last_block_sums", 3), ("all_threads_fence", 1),
     ("same_element", 1), ("write_after_read", 1)],
)  # fmt: skip
def test_race_between_blocks_is_found(kernel: str, fault: int, order: str) -> None:
    with emulator.schedule(order=order), pytest.raises(emulator.EmulatorError) as error:
        run_blocks(kernel, fault)
    assert error.value.kinds == {"race"}
    assert {finding.place for finding in error.value.findings} & lines(BLOCKS, kernel), str(error.value)


@pytest.mark.parametrize(
    ("blocks", "threads", "smem_bytes", "message"),
    [
        (0, 32, 0, "a grid must be in"),
        (1, 1025, 0, "a block must have 1 .. 1024 threads"),
        (1, 0, 0, "a block must have 1 .. 1024 threads"),
        (1, 32, 166913, "a block may have 166912 bytes of shared memory"),
    ],
)
def test_launch_beyond_the_limits_is_refused(
    blocks: int, threads: int, smem_bytes: int, message: str
) -> None:
    with emulator.schedule(device="sm_80"), pytest.raises(emulator.EmulatorError, match=message):
        emulator.run(BLOCKS, "empty_launch", {}, {"out": torch.zeros(4)}, blocks, threads, smem_bytes)


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
def test_kernel_that_does_not_end_is_stopped(checked: bool) -> None:
    run_faults("never_ends", 0, checked)
    with emulator.schedule(time_limit=0.05), pytest.raises(emulator.EmulatorError) as error:
        run_faults("never_ends", 1, checked)
    assert error.value.kinds == {"time"}
    assert {finding.place for finding in error.value.findings} == lines(FAULTS, "never_ends"), str(
        error.value
    )


@pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])
def test_stack_that_overflows_is_found(checked: bool) -> None:
    run_faults("too_many_locals", 0, checked)
    with pytest.raises(emulator.EmulatorError, match="has more than 61440 bytes of local variables"):
        run_faults("too_many_locals", 1, checked)


def test_launch_within_the_limits_runs() -> None:
    for device, smem_bytes in emulator.SMEM_LIMITS.items():
        with emulator.schedule(device=device):
            emulator.run(BLOCKS, "empty_launch", {}, {"out": torch.zeros(4)}, 1, 1024, smem_bytes)
