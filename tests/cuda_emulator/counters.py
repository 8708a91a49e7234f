# SPDX-License-Identifier: Apache-2.0
"""What was counted while kernels ran: traffic, bank conflicts, MMAs, barriers. See counters.h."""

from __future__ import annotations

import ctypes
from collections import defaultdict
from dataclasses import dataclass, field, fields

from . import places

SECTOR = 32  # bytes


@dataclass
class Traffic:
    """Between one tensor's memory and the multiprocessors. Sectors have 32 bytes."""

    read_bytes: int = 0  # that threads asked for
    read_sectors: int = 0  # of all warp instructions: what L1 is asked for, and L2 if L1 keeps nothing
    read_sectors_per_block: int = 0  # each once a block: what L2 is asked for if L1 keeps all of it
    read_sectors_unique: int = 0  # each once: what DRAM gives at least
    written_bytes: int = 0
    written_sectors: int = 0
    written_sectors_unique: int = 0
    atomics: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Traffic)))


@dataclass
class SharedLine:
    """Accesses of shared memory by one line of a kernel."""

    instructions: int = 0  # of warps
    wavefronts: int = 0
    extra: int = 0  # wavefronts that bank conflicts added

    def __add__(self, other: SharedLine) -> SharedLine:
        return SharedLine(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(SharedLine)))


@dataclass
class Counters:
    """Sums over the calls that were counted."""

    traffic: dict[str, Traffic] = field(default_factory=lambda: defaultdict(Traffic))  # by argument or output
    shared: dict[str, SharedLine] = field(default_factory=lambda: defaultdict(SharedLine))  # by file:line
    mmas: int = 0  # of warps
    useful_mmas: float = 0.0  # less the rows, columns and steps of k that are all zeros: padding
    barriers: int = 0  # of blocks
    shared_atomics: int = 0

    @property
    def useful_mma_share(self) -> float:
        return self.useful_mmas / self.mmas if self.mmas else 1.0

    @property
    def bank_conflicts(self) -> int:
        """Wavefronts of shared memory that conflicts have added."""
        return sum(line.extra for line in self.shared.values())

    @property
    def requested_bytes(self) -> int:
        """In whole sectors, of every warp instruction."""
        return SECTOR * sum(t.read_sectors + t.written_sectors for t in self.traffic.values())

    @property
    def l2_bytes(self) -> int:
        """In whole sectors, with every sector read once a block."""
        return SECTOR * sum(t.read_sectors_per_block + t.written_sectors for t in self.traffic.values())

    @property
    def dram_bytes(self) -> int:
        """In whole sectors, each read once and written once: the least that DRAM moves."""
        return SECTOR * sum(t.read_sectors_unique + t.written_sectors_unique for t in self.traffic.values())

    def take(self, machine: ctypes.CDLL) -> None:
        """Add what the machine has counted, and clear it there."""
        machine.emulator_retire_buffers()
        count = machine.emulator_traffic_buffers()
        names, numbers = (ctypes.c_char_p * count)(), (ctypes.c_uint64 * (8 * count))()
        machine.emulator_traffic(names, numbers)
        for i, name in enumerate(names):
            if any(counted := numbers[8 * i : 8 * i + 8]):
                self.traffic[(name or b"").decode()] += Traffic(*counted)
        count = machine.emulator_shared_places()
        files, numbers = (ctypes.c_char_p * count)(), (ctypes.c_uint64 * (4 * count))()
        machine.emulator_shared_counters(files, numbers)
        for i, file in enumerate(files):
            at, *counted = numbers[4 * i : 4 * i + 4]
            self.shared[places.name_of((file or b"").decode(), at)] += SharedLine(*counted)
        totals = (ctypes.c_double * 4)()
        machine.emulator_totals(totals)
        self.mmas += int(totals[0])
        self.useful_mmas += totals[1]
        self.barriers += int(totals[2])
        self.shared_atomics += int(totals[3])
        machine.emulator_clear_counters()
