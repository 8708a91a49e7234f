# SPDX-License-Identifier: Apache-2.0
"""Layouts of other engines: round trips of batches, the layouts' own definitions, and corrupted inputs."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import token_trees

from pyspec.trees import Drawn, TokenTree, TreeBatch
from pyspec.trees.convert import (
    from_flashinfer,
    from_sglang,
    from_tensorrt_llm,
    to_flashinfer,
    to_sglang,
    to_tensorrt_llm,
)

BATCH = TreeBatch.of([TokenTree.from_paths(7, [[1, 2], [3]]), TokenTree.chain([8, 9]), TokenTree.chain([5])])
batches = st.lists(token_trees(max_nodes=70), min_size=1, max_size=4).map(TreeBatch.of)


def visible(tree: TokenTree, node: int) -> set[int]:
    return set(tree.path(node))


@given(batches, st.integers(0, 5))
def test_sglang_round_trip(batch: TreeBatch, extra: int) -> None:
    links = to_sglang(batch, batch.max_nodes + extra)
    assert from_sglang(links).trees == batch.trees
    for b, tree in enumerate(batch.trees):
        for node, children in enumerate(tree.children):
            found, child = [], int(links.retrive_next_token[b, node])
            while child != -1:
                found.append(child)
                child = int(links.retrive_next_sibling[b, child])
            assert tuple(found) == children
        assert (links.retrive_next_token[b, len(tree) :] == -1).all()
        assert (links.retrive_next_sibling[b, len(tree) :] == -1).all()


def test_sglang_example() -> None:
    links = to_sglang(BATCH)
    assert links.candidates.tolist() == [[7, 1, 2, 3], [8, 9, 0, 0], [5, 0, 0, 0]]
    assert links.retrive_index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert links.retrive_next_token.tolist() == [[1, 2, -1, -1], [1, -1, -1, -1], [-1, -1, -1, -1]]
    assert links.retrive_next_sibling.tolist() == [[-1, 3, -1, -1], [-1] * 4, [-1] * 4]
    assert from_sglang(links, Drawn.IID, True).trees[1] == TokenTree(
        np.array([8, 9], dtype=np.int32), np.array([-1, 0], dtype=np.int32), Drawn.IID, True
    )


@given(batches, st.data())
def test_flashinfer_round_trip(batch: TreeBatch, data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 40), min_size=len(batch), max_size=len(batch)))
    mask = to_flashinfer(batch, lengths)
    assert from_flashinfer(mask, batch.tokens).trees == batch.trees
    for b, tree in enumerate(batch.trees):
        kv_length = int(mask.kv_lengths[b])
        assert kv_length == lengths[b] + len(tree)
        for q in range(len(tree)):
            seen = set()
            for k in range(kv_length):
                bit = q * kv_length + k
                if mask.packed_mask[mask.mask_indptr[b] + bit // 8] >> bit % 8 & 1:
                    seen.add(k - lengths[b])
            assert seen == set(range(-lengths[b], 0)) | visible(tree, q)


@given(batches)
def test_tensorrt_llm_round_trip(batch: TreeBatch) -> None:
    inputs = to_tensorrt_llm(batch)
    assert inputs.packed_mask.dtype == np.int32
    assert inputs.packed_mask.shape[1] == -(-batch.max_nodes // 32)
    assert from_tensorrt_llm(inputs, batch.tokens).trees == batch.trees
    for b, tree in enumerate(batch.trees):
        for node in range(len(tree)):
            words = [int(word) & (2**32 - 1) for word in inputs.packed_mask[batch.cu_t[b] + node]]
            assert {j for j in range(32 * len(words)) if words[j // 32] >> j % 32 & 1} == visible(tree, node)
        assert inputs.position_offsets[b, : len(tree)].tolist() == tree.depths.tolist()
        assert not inputs.position_offsets[b, len(tree) :].any()


def test_empty_batch() -> None:
    empty = TreeBatch.of([])
    assert not from_sglang(to_sglang(empty)).trees
    assert not from_flashinfer(to_flashinfer(empty, []), empty.tokens).trees
    assert not from_tensorrt_llm(to_tensorrt_llm(empty), empty.tokens).trees


def changed(array: np.ndarray, index: object, value: int) -> np.ndarray:
    copy = array.copy()
    copy[index] = value
    return copy


def test_bad_sglang_links_are_refused() -> None:
    good = to_sglang(BATCH)
    token, sibling = good.retrive_next_token, good.retrive_next_sibling
    for bad, message in [
        (replace(good, candidates=good.candidates[0]), "from_sglang: candidates must be [B, N]"),
        (
            replace(good, retrive_next_token=token[:, :3]),
            "from_sglang: retrive_next_token must be [B, N] as candidates [3, 4], got [3, 3]",
        ),
        (
            replace(good, retrive_index=changed(good.retrive_index, (1, 2), 0)),
            "from_sglang: retrive_index must be b * N + i, got 0 at [1, 2]",
        ),
        (
            replace(good, retrive_next_token=changed(token, (0, 2), 0)),
            "from_sglang: links must be in range and reach each node once, got 0 below [0, 2]",
        ),
        (
            replace(good, retrive_next_token=changed(token, (0, 2), 4)),
            "from_sglang: links must be in range and reach each node once, got 4 below [0, 2]",
        ),
        (
            replace(good, retrive_next_sibling=changed(sibling, (0, 3), 3)),
            "from_sglang: links must be in range and reach each node once, got 3 below [0, 0]",
        ),
        (
            replace(
                good,
                retrive_next_token=changed(token, (0, 0), 3),
                retrive_next_sibling=changed(changed(sibling, (0, 3), 1), (0, 1), -1),
            ),
            "from_sglang: retrive_next_sibling must ascend, got 1 after 3 in request 0",
        ),
        (
            replace(good, retrive_next_token=changed(token, (0, 1), -1)),
            "from_sglang: links must reach all nodes but the last, got none to [0, 2]",
        ),
        (
            replace(good, candidates=changed(good.candidates, (1, 1), 2**40)),
            "from_sglang: candidates must fit int32, got 1099511627776",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            from_sglang(bad)
    with pytest.raises(ValueError, match=r"^to_sglang: num_nodes must be >= 4 \(the largest tree\), got 3$"):
        to_sglang(BATCH, 3)


def test_bad_flashinfer_masks_are_refused() -> None:
    good = to_flashinfer(BATCH, [3, 0, 1])
    packed, indptr = good.packed_mask, good.mask_indptr
    assert indptr.tolist() == [0, 4, 5, 6]  # 4 * 7, 2 * 2 and 1 * 2 bits
    for bad, message in [
        (replace(good, mask_indptr=indptr[:-1]), "mask_indptr, qo_indptr, kv_lengths must be [B + 1]"),
        (
            replace(good, mask_indptr=changed(indptr, 2, 6)),
            "mask_indptr must be [4, 5] for request 1, got [4, 6]",
        ),
        (replace(good, packed_mask=packed[:-1]), "packed_mask must have 6 bytes, got 5"),
        (
            replace(good, packed_mask=changed(packed, 4, 0xFF)),
            "packed_mask must end in zero bits, got ones after request 1",
        ),
        (
            replace(good, packed_mask=changed(packed, 0, 0)),
            "packed_mask must show all committed tokens, got zeros in request 0",
        ),
        (
            replace(good, packed_mask=changed(packed, 4, 0b1111)),
            "packed_mask must show the node and its ancestors, got another row at node 0 of 1",
        ),
        (
            replace(good, packed_mask=changed(packed, 4, 0b1001)),
            "packed_mask must have one root, got a second at node 1 of 1",
        ),
        (
            replace(good, kv_lengths=changed(good.kv_lengths, 0, 3)),
            "kv_lengths must be >= 4 nodes, got 3 at 0",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^from_flashinfer: {re.escape(message)}"):
            from_flashinfer(bad, BATCH.tokens)
    with pytest.raises(ValueError, match="^from_flashinfer: tokens must have 7 nodes, got 6$"):
        from_flashinfer(good, BATCH.tokens[:-1])
    with pytest.raises(ValueError, match="^to_flashinfer: context_lengths must have 3 values, got 2$"):
        to_flashinfer(BATCH, [1, 2])
    with pytest.raises(ValueError, match="^to_flashinfer: context_lengths must be >= 0, got -2 at 1$"):
        to_flashinfer(BATCH, [1, -2, 3])


def test_bad_tensorrt_llm_inputs_are_refused() -> None:
    good = to_tensorrt_llm(BATCH)
    for bad, message in [
        (replace(good, packed_mask=good.packed_mask[:-1]), "packed_mask must be [7, 1], got [6, 1]"),
        (
            replace(good, packed_mask=changed(good.packed_mask, (4, 0), 0b100001)),
            "packed_mask must have 2 columns in request 1, got ones beyond",
        ),
        (
            replace(good, packed_mask=changed(good.packed_mask, (2, 0), 0b1101)),
            "packed_mask must show the node and its ancestors, got another row at node 2 of 0",
        ),
        (
            replace(good, position_offsets=changed(good.position_offsets, (1, 1), 2)),
            "position_offsets must be the depths, got [0, 2] at 1",
        ),
    ]:
        with pytest.raises(ValueError, match=f"^from_tensorrt_llm: {re.escape(message)}"):
            from_tensorrt_llm(bad, BATCH.tokens)
