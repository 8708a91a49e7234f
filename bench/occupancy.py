# SPDX-License-Identifier: Apache-2.0
"""How many blocks of a kernel fit one multiprocessor, and what keeps more out: the arithmetic of CUDA's occupancy calculator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Multiprocessor:
    """What blocks share, by compute capability (the table of the CUDA programming guide)."""

    warps: int
    blocks: int
    shared_bytes: int
    block_shared_bytes: int  # the most that one block may ask for
    registers: int = 65536


TARGETS = {
    "sm_80": Multiprocessor(64, 32, 164 << 10, 163 << 10),
    "sm_90a": Multiprocessor(64, 32, 228 << 10, 227 << 10),
    "sm_100a": Multiprocessor(64, 32, 228 << 10, 227 << 10),
}
REGISTER_UNIT = 256  # registers are given to a warp in such pieces
SHARED_UNIT = 128
RESERVED_SHARED = 1 << 10  # of every block, by the system
SCHEDULERS = 4  # each has a quarter of the registers, and warps do not move


@dataclass(frozen=True)
class Occupancy:
    """Blocks per multiprocessor and the limit that comes first: warps, blocks, registers or shared memory."""

    blocks: int
    limiter: str


def occupancy(target: str, threads: int, registers: int, shared_bytes: int) -> Occupancy:
    """Of blocks of `threads` threads with `registers` each and `shared_bytes` (static and dynamic) a block."""
    sm = TARGETS[target]
    warps = -(-threads // 32)
    a_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    resident = SCHEDULERS * (sm.registers // SCHEDULERS // a_warp) if registers else sm.warps
    shared = -(-(shared_bytes + RESERVED_SHARED) // SHARED_UNIT) * SHARED_UNIT
    fits = shared_bytes <= sm.block_shared_bytes
    limits = {
        "warps": sm.warps // warps, "registers": resident // warps,
        "shared memory": sm.shared_bytes // shared if fits else 0, "blocks": sm.blocks,
    }  # fmt: skip
    limiter = min(limits, key=lambda name: limits[name])
    return Occupancy(limits[limiter], limiter)
