# SPDX-License-Identifier: Apache-2.0
"""Batches of trees in the layouts of other engines, and back. Every conversion round-trips.

Layouts carry tokens and topology only, so the way back takes `drawn` (and `pruned`) from the caller. What a
layout says beyond that (padding, bits between requests, mask rows) is checked, never ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .batch import TreeBatch
from .token_tree import Drawn, TokenTree


@dataclass(frozen=True, eq=False)
class SGLangTrees:
    """SGLang's links: N nodes for every request, as its EAGLE verification takes them.

    candidates            int64 [B, N]  tokens
    retrive_index         int64 [B, N]  b * N + i: the row of the node's logits
    retrive_next_token    int64 [B, N]  local index of the first child, -1 for none
    retrive_next_sibling  int64 [B, N]  local index of the next sibling, -1 for none

    Smaller trees are padded at their end with nodes of token 0 that no link reaches, so the walk never visits
    them; they cost a row of logits each. Siblings are linked in ascending index order (verification order).
    """

    candidates: NDArray[np.int64]
    retrive_index: NDArray[np.int64]
    retrive_next_token: NDArray[np.int64]
    retrive_next_sibling: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FlashInferMask:
    """FlashInfer's packed custom mask: per request row-major, little-endian bits of bool [T_b, L_b + T_b].

    packed_mask  uint8 [mask_indptr[B]]  every request starts at a byte of its own and ends in zero bits
    mask_indptr  int32 [B + 1]           byte offsets, ceil(T_b * (L_b + T_b) / 8) apart
    qo_indptr    int32 [B + 1]           node offsets (cu_t)
    kv_lengths   int32 [B]               L_b + T_b

    Bit q * (L_b + T_b) + k of request b is 1 if its node q sees slot k: all L_b committed tokens, its
    ancestors and itself.
    """

    packed_mask: NDArray[np.uint8]
    mask_indptr: NDArray[np.int32]
    qo_indptr: NDArray[np.int32]
    kv_lengths: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TensorRTLLMTrees:
    """TensorRT-LLM's spec-decoding inputs; N is the largest tree's node count.

    packed_mask         int32 [T, ceil(N / 32)]  bit j % 32 of word j // 32 in a node's row: node j is the
                                                 node itself or an ancestor; rows of request 0, then 1, ...
    position_offsets    int32 [B, N]             depth of each node, 0 in the padding
    generation_lengths  int32 [B]                node counts
    """

    packed_mask: NDArray[np.int32]
    position_offsets: NDArray[np.int32]
    generation_lengths: NDArray[np.int32]


def to_sglang(batch: TreeBatch, num_nodes: int | None = None) -> SGLangTrees:
    """SGLang's links with `num_nodes` nodes per request: at least the largest tree's number, the default."""
    least = batch.max_nodes
    width = least if num_nodes is None else num_nodes
    if width < least:
        raise ValueError(f"to_sglang: num_nodes must be >= {least} (the largest tree), got {width}")
    shape = (len(batch), width)
    candidates = np.zeros(shape, dtype=np.int64)
    next_token = np.full(shape, -1, dtype=np.int64)
    next_sibling = np.full(shape, -1, dtype=np.int64)
    for b, tree in enumerate(batch.trees):
        candidates[b, : len(tree)] = tree.tokens
        for node, children in enumerate(tree.children):
            if children:
                next_token[b, node] = children[0]
                next_sibling[b, list(children[:-1])] = children[1:]
    index = np.arange(len(batch) * width, dtype=np.int64).reshape(shape)
    return SGLangTrees(candidates, index, next_token, next_sibling)


def from_sglang(links: SGLangTrees, drawn: Drawn = Drawn.DETERMINISTIC, pruned: bool = False) -> TreeBatch:
    """The trees of SGLang's links, without padding.

    ValueError for shapes that differ, links out of range, cyclic or reached twice, siblings not in ascending
    order, and unreachable nodes that are not at the end.
    """
    shape = links.candidates.shape
    for name in ("candidates", "retrive_index", "retrive_next_token", "retrive_next_sibling"):
        array = getattr(links, name)
        if array.ndim != 2 or array.shape != shape:
            raise ValueError(
                f"from_sglang: {name} must be [B, N] as candidates {list(shape)}, got {list(array.shape)}"
            )
    expected = np.arange(shape[0] * shape[1]).reshape(shape)
    if not np.array_equal(links.retrive_index, expected):
        b, i = np.argwhere(links.retrive_index != expected)[0]
        found = links.retrive_index[b, i]
        raise ValueError(f"from_sglang: retrive_index must be b * N + i, got {found} at [{b}, {i}]")
    trees = []
    for b in range(shape[0]):
        parents = _parents_of_links(
            b, links.retrive_next_token[b].tolist(), links.retrive_next_sibling[b].tolist()
        )
        tokens = _narrow("from_sglang", "candidates", links.candidates[b, : len(parents)])
        trees.append(TokenTree(tokens, np.array(parents, dtype=np.int32), drawn, pruned))
    return TreeBatch.of(trees)


def to_flashinfer(batch: TreeBatch, context_lengths: Sequence[int]) -> FlashInferMask:
    """FlashInfer's packed mask of trees behind `context_lengths` (L, one per request) committed tokens."""
    lengths = _context_lengths("to_flashinfer", context_lengths, len(batch))
    packed = []
    for tree, length in zip(batch.trees, lengths, strict=True):
        mask = np.ones((len(tree), length + len(tree)), dtype=bool)
        mask[:, length:] = _visible(tree)
        packed.append(np.packbits(mask, axis=None, bitorder="little"))
    indptr = np.zeros(len(batch) + 1, dtype=np.int64)
    np.cumsum([len(part) for part in packed], out=indptr[1:])
    kv_lengths = np.array(lengths, dtype=np.int64) + np.diff(batch.cu_t)
    return FlashInferMask(
        np.concatenate(packed) if packed else np.empty(0, dtype=np.uint8),
        _narrow("to_flashinfer", "mask_indptr", indptr),
        batch.cu_t.copy(),
        kv_lengths.astype(np.int32),
    )


def from_flashinfer(
    mask: FlashInferMask, tokens: NDArray[np.int32], drawn: Drawn = Drawn.DETERMINISTIC, pruned: bool = False
) -> TreeBatch:
    """The trees of a packed mask and flat int32 tokens [T].

    ValueError for offsets that do not fit the sizes, bits set after a request's last, committed tokens hidden
    from a node, and rows that are not the node and its ancestors.
    """
    name = "from_flashinfer"
    if len(mask.mask_indptr) != len(mask.qo_indptr) or len(mask.kv_lengths) != len(mask.qo_indptr) - 1:
        raise ValueError(
            f"{name}: mask_indptr, qo_indptr, kv_lengths must be [B + 1], [B + 1], [B], got "
            f"[{len(mask.mask_indptr)}], [{len(mask.qo_indptr)}], [{len(mask.kv_lengths)}]"
        )
    if len(mask.packed_mask) != mask.mask_indptr[-1]:
        size = len(mask.packed_mask)
        raise ValueError(f"{name}: packed_mask must have {mask.mask_indptr[-1]} bytes, got {size}")
    if len(tokens) != mask.qo_indptr[-1]:
        raise ValueError(f"{name}: tokens must have {mask.qo_indptr[-1]} nodes, got {len(tokens)}")
    trees = []
    begin = 0
    for b, kv_length in enumerate(mask.kv_lengths.tolist()):
        first, last = int(mask.qo_indptr[b]), int(mask.qo_indptr[b + 1])
        count = last - first
        end = begin - (-count * kv_length // 8)
        if count < 1 or kv_length < count:
            raise ValueError(f"{name}: kv_lengths must be >= {max(count, 1)} nodes, got {kv_length} at {b}")
        got = mask.mask_indptr[b : b + 2].tolist()
        if got != [begin, end]:
            raise ValueError(f"{name}: mask_indptr must be {[begin, end]} for request {b}, got {got}")
        bits = np.unpackbits(mask.packed_mask[begin:end], bitorder="little").astype(bool)
        if bits[count * kv_length :].any():
            raise ValueError(f"{name}: packed_mask must end in zero bits, got ones after request {b}")
        rows = bits[: count * kv_length].reshape(count, kv_length)
        if not rows[:, : kv_length - count].all():
            raise ValueError(f"{name}: packed_mask must show all committed tokens, got zeros in request {b}")
        parents = _parents_of_rows(name, b, rows[:, kv_length - count :])
        trees.append(TokenTree(tokens[first:last], parents, drawn, pruned))
        begin = end
    return TreeBatch.of(trees)


def to_tensorrt_llm(batch: TreeBatch) -> TensorRTLLMTrees:
    """TensorRT-LLM's mask rows, position offsets and generation lengths."""
    num_nodes = batch.max_nodes
    words = -(-num_nodes // 32)
    rows = np.zeros((len(batch.tokens), 32 * words), dtype=bool)
    offsets = np.zeros((len(batch), num_nodes), dtype=np.int32)
    for b, tree in enumerate(batch.trees):
        rows[batch.cu_t[b] : batch.cu_t[b + 1], : len(tree)] = _visible(tree)
        offsets[b, : len(tree)] = tree.depths
    packed = np.packbits(rows, axis=1, bitorder="little").view("<i4").astype(np.int32, copy=False)
    return TensorRTLLMTrees(packed, offsets, np.diff(batch.cu_t))


def from_tensorrt_llm(
    inputs: TensorRTLLMTrees,
    tokens: NDArray[np.int32],
    drawn: Drawn = Drawn.DETERMINISTIC,
    pruned: bool = False,
) -> TreeBatch:
    """The trees of TensorRT-LLM's inputs and flat int32 tokens [T].

    ValueError for sizes that disagree, rows that are not the node and its ancestors, and offsets that are not
    the depths.
    """
    name = "from_tensorrt_llm"
    counts = inputs.generation_lengths.tolist()
    total, width = sum(counts), max(counts, default=0)
    words = -(-width // 32)
    for argument, array, shape in (
        ("packed_mask", inputs.packed_mask, (total, words)),
        ("position_offsets", inputs.position_offsets, (len(counts), width)),
        ("tokens", tokens, (total,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name}: {argument} must be {list(shape)}, got {list(array.shape)}")
    data = np.ascontiguousarray(inputs.packed_mask, dtype="<i4").view(np.uint8)
    rows = np.unpackbits(data, axis=1, bitorder="little").astype(bool)
    trees = []
    begin = 0
    for b, count in enumerate(counts):
        own = rows[begin : begin + count]
        if own[:, count:].any():
            raise ValueError(f"{name}: packed_mask must have {count} columns in request {b}, got ones beyond")
        parents = _parents_of_rows(name, b, own[:, :count])
        tree = TokenTree(tokens[begin : begin + count], parents, drawn, pruned)
        offsets = inputs.position_offsets[b, :count]
        if not np.array_equal(offsets, tree.depths):
            raise ValueError(f"{name}: position_offsets must be the depths, got {offsets.tolist()} at {b}")
        trees.append(tree)
        begin += count
    return TreeBatch.of(trees)


def _visible(tree: TokenTree) -> NDArray[np.bool_]:
    """bool [T, T]: node j is node i or an ancestor of it."""
    words = tree.ancestor_mask().astype("<i8", copy=False)
    return np.unpackbits(words.view(np.uint8), axis=1, count=len(tree), bitorder="little").astype(bool)


def _parents_of_links(b: int, next_token: list[int], next_sibling: list[int]) -> list[int]:
    """Parents of the nodes that the links of request b reach from node 0."""
    num_nodes = len(next_token)
    parents = {0: -1} if num_nodes else {}
    stack = [0] if num_nodes else []
    while stack:
        parent = stack.pop()
        child, before = next_token[parent], -1
        while child != -1:
            if not 0 <= child < num_nodes or child in parents:
                rule = "links must be in range and reach each node once"
                raise ValueError(f"from_sglang: {rule}, got {child} below [{b}, {parent}]")
            if child < before:
                rule = "retrive_next_sibling must ascend"
                raise ValueError(f"from_sglang: {rule}, got {child} after {before} in request {b}")
            parents[child] = parent
            stack.append(child)
            child, before = next_sibling[child], child
    if any(node not in parents for node in range(len(parents))):
        lost = next(node for node in range(num_nodes) if node not in parents)
        raise ValueError(f"from_sglang: links must reach all nodes but the last, got none to [{b}, {lost}]")
    return [parents[node] for node in range(len(parents))]


def _parents_of_rows(name: str, b: int, rows: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Parents such that each of the mask rows of request b is the node itself and its ancestors."""
    parents = np.full(len(rows), -1, dtype=np.int32)
    for node in range(len(rows)):
        ancestors = np.flatnonzero(rows[node, :node])
        expected = np.zeros(len(rows), dtype=bool)
        if node:
            if not len(ancestors):
                rule = "packed_mask must have one root"
                raise ValueError(f"{name}: {rule}, got a second at node {node} of {b}")
            parents[node] = ancestors[-1]
            expected |= rows[parents[node]]
        expected[node] = True
        if not np.array_equal(rows[node], expected):
            rule = "packed_mask must show the node and its ancestors"
            raise ValueError(f"{name}: {rule}, got another row at node {node} of {b}")
    return parents


def _context_lengths(name: str, lengths: Sequence[int], num_requests: int) -> list[int]:
    values = [int(length) for length in lengths]
    if len(values) != num_requests:
        raise ValueError(f"{name}: context_lengths must have {num_requests} values, got {len(values)}")
    for b, length in enumerate(values):
        if length < 0:
            raise ValueError(f"{name}: context_lengths must be >= 0, got {length} at {b}")
    return values


def _narrow(name: str, argument: str, values: NDArray[np.int64]) -> NDArray[np.int32]:
    if values.size and (values.min() < -(2**31) or values.max() >= 2**31):
        raise ValueError(f"{name}: {argument} must fit int32, got {values.max()}")
    return values.astype(np.int32)
