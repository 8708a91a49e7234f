# SPDX-License-Identifier: Apache-2.0
"""CUDA tree_attention: what it moves at context 8192 on a machine that row tiles fill, over what no kernel avoids."""

from __future__ import annotations

import pytest
from attention_batches import chain, random_tree
from cuda_emulator import emulator
from cuda_emulator.counters import SECTOR, Counters

from pyspec import spec
from pyspec.contract import Case
from pyspec.spec.tree_attention import make_case

CONTEXT = 8192


def counted(case: Case) -> tuple[Counters, int]:
    """Counters of a call on a machine of one multiprocessor, and the least bytes of its cost."""
    with emulator.schedule(num_sms=1), emulator.counting() as counters:
        emulator.call("tree_attention", *case.args, **case.kwargs)
    return counters, spec.tree_attention.cost(
        spec.tree_attention.bind(case.args), *case.args, **case.kwargs
    ).bytes


def kv_bytes(counters: Counters) -> int:
    return SECTOR * sum(counters.traffic[name].read_sectors for name in ("k_pages", "v_pages"))


def make(R: int, D: int, nodes: int, S: int, G: int, kv_dtype: str = "bf16") -> Case:
    parents = random_tree(nodes, 1)
    return make_case("", R * G, G, D, S, "bf16", kv_dtype, [(CONTEXT, parents)])


@pytest.mark.parametrize(
    ("R", "D", "nodes", "S", "G"),
    [
        (3, 64, 1, 16, 8), (3, 64, 64, 64, 2), (4, 64, 8, 64, 4), (4, 128, 64, 16, 1), (8, 64, 64, 16, 1), (8, 128, 1, 64, 4),
        (8, 128, 16, 16, 1),
    ],
)  # fmt: skip
def test_every_byte_of_kv_is_read_once_for_all_nodes_and_heads(
    R: int, D: int, nodes: int, S: int, G: int
) -> None:
    counters, least = counted(make(R, D, nodes, S, G))
    assert kv_bytes(counters) <= 1.001 * 2 * 2 * (CONTEXT + nodes) * G * D
    assert counters.l2_bytes <= 1.08 * least
    assert counters.bank_conflicts == 0


def test_a_tree_moves_hardly_more_than_a_token() -> None:
    tree, _ = counted(make(4, 64, 64, 16, 1))
    tokens, _ = counted(make(4, 64, 1, 16, 8))  # of 8 KV heads
    assert tree.l2_bytes <= 1.1 * tokens.l2_bytes / 8


def test_quantised_pages_are_half_of_it() -> None:
    """Scales of all KV heads of a slot lie together: each head's block asks L2 for their sector, DRAM gives it once."""
    counters, least = counted(make(4, 64, 1, 16, 8, "i8"))
    assert kv_bytes(counters) <= 1.001 * 2 * (CONTEXT + 1) * 8 * 64
    assert counters.dram_bytes <= 1.08 * least
    assert counters.bank_conflicts == 0


def test_rows_that_no_tile_holds_share_kv_by_as_few_tiles_as_can_be() -> None:
    """64 nodes of 8 heads of D = 128 are 512 rows, of which a tile holds 256: KV is asked for twice, the second time from L2."""
    counters, least = counted(make_case("", 8, 1, 128, 16, "bf16", "bf16", [(1000, chain(64))]))
    assert kv_bytes(counters) < 2 * 2 * 2 * 1064 * 128
    assert counters.dram_bytes <= 1.03 * least
