# SPDX-License-Identifier: Apache-2.0
"""verify_tree in Triton: the walk of token trees, bit for bit as pyspec/spec/verify_tree.py.

Two launches: every node of every tree picks its token at once (a walk from node to node would wait for one
pick after another), then one program per request walks. So logits of nodes that are not walked are read,
and what was picked there is dropped.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .aot import AotCase
from .dots import rows
from .pick import pick
from .pipeline import OPTIONS, pick_config, request_of, sort_size
from .sample import LAW_TYPES


@triton.jit(do_not_specialize=["num", "requests"])
def pick_nodes_kernel(
    logits_ptr, edited_ptr, parents_ptr, cu_t_ptr, position_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr,
    typical_p_ptr, seed_ptr, stream_ptr, token_ptr, logprob_ptr, top_tokens_ptr, top_logprobs_ptr, vocab, num,
    requests, logits_stride_t, edited_stride_t, LOGPROBS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_B: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """One node: its depth gives the position of the token to pick."""
    t = tl.program_id(0).to(tl.int64)
    vocab = tl.full([], 0, tl.int32) + vocab  # a number also where Triton makes 1 a constant
    b = request_of(cu_t_ptr, requests, t, BLOCK_B)
    begin = tl.load(cu_t_ptr + b)
    position = tl.load(position_ptr + b) + 1
    parent = tl.load(parents_ptr + t)
    while parent >= 0:
        position += 0 if PLANTED_BUG == "root's position" else 1
        parent = tl.load(parents_ptr + begin + parent)
    if edited_ptr is not None:
        edited_ptr += t * edited_stride_t
    pick(
        logits_ptr + t * logits_stride_t, edited_ptr, vocab, position, tl.load(temperature_ptr + b),
        tl.load(top_k_ptr + b),
        tl.load(top_p_ptr + b), tl.load(min_p_ptr + b), tl.load(typical_p_ptr + b), tl.load(seed_ptr + b),
        tl.load(stream_ptr + b), token_ptr + t, logprob_ptr + t, top_tokens_ptr + t * num,
        top_logprobs_ptr + t * num, num, LOGPROBS, SIZE, BLOCK, PLANTED_BUG,
    )  # fmt: skip


@triton.jit(do_not_specialize=["max_path", "num"])
def walk_kernel(
    tokens_ptr, parents_ptr, cu_t_ptr, token_ptr, logprob_ptr, top_tokens_ptr, top_logprobs_ptr, path_ptr,
    path_len_ptr, emitted_ptr, out_logprobs_ptr, out_top_tokens_ptr, out_top_logprobs_ptr, max_path, num,
    SIZE: tl.constexpr, BLOCK_T: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """One request: from the root to the child whose token was picked; what is beyond the path is filled."""
    b = tl.program_id(0).to(tl.int64)
    begin = tl.load(cu_t_ptr + b).to(tl.int64)
    nodes = (tl.load(cu_t_ptr + b + 1) - begin).to(tl.int32)
    node = tl.full([], 0, tl.int32)  # `nodes` once the walk has ended
    length = tl.full([], 0, tl.int32)
    for depth in range(0, max_path):
        walked = node < nodes
        row, t = (0 if PLANTED_BUG == "one row" else b) * max_path + depth, begin + node
        picked = tl.load(token_ptr + t, mask=walked, other=-1)
        tl.store(path_ptr + row, tl.where(walked, node, -1))
        tl.store(emitted_ptr + row, picked)
        tl.store(out_logprobs_ptr + row, tl.load(logprob_ptr + t, mask=walked, other=0.0))
        if SIZE > 0:
            place = tl.arange(0, SIZE)
            from_top, to_top, mask_top = t * num + place, row * num + place, place < num
            top_tokens = tl.load(top_tokens_ptr + from_top, mask=mask_top & walked, other=-1)
            top_logprobs = tl.load(top_logprobs_ptr + from_top, mask=mask_top & walked, other=0.0)
            tl.store(out_top_tokens_ptr + to_top, top_tokens, mask=mask_top)
            tl.store(out_top_logprobs_ptr + to_top, top_logprobs, mask=mask_top)
        length += walked.to(tl.int32)
        child = nodes
        for start in range(node + 1, nodes, BLOCK_T):
            offs = start + tl.arange(0, BLOCK_T)
            mask = (offs < nodes) | (PLANTED_BUG == "no mask")
            parent = tl.load(parents_ptr + begin + offs, mask=mask, other=-1)
            token = tl.load(tokens_ptr + begin + offs, mask=mask, other=-1)
            child = tl.minimum(
                child, tl.min(tl.where((parent == node) & (token == picked), offs, nodes), axis=0)
            )
        node = child
    tl.store(path_len_ptr + b, length)


def verify_tree(
    logits: Tensor, tokens: Tensor, parents: Tensor, cu_t: Tensor, position: Tensor, temperature: Tensor,
    top_k: Tensor, top_p: Tensor, min_p: Tensor, typical_p: Tensor, seed: Tensor, stream: Tensor,
    edited: Tensor | None = None, *, max_path: int, num_logprobs: int = 0, with_logprobs: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """path, path_len, emitted, logprobs, top_tokens, top_logprobs of every request."""
    laws = (position, temperature, top_k, top_p, min_p, typical_p, seed, stream)
    return _launch(
        logits,
        tokens,
        parents,
        cu_t,
        laws,
        max_path,
        num_logprobs,
        edited=edited,
        with_logprobs=with_logprobs,
    )


def _launch(
    logits: Tensor, tokens: Tensor, parents: Tensor, cu_t: Tensor, laws: tuple[Tensor, ...], max_path: int,
    num: int,
    bug: str = "", edited: Tensor | None = None,
    with_logprobs: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (t, vocab), b = logits.shape, cu_t.size(0) - 1
    picked = tokens.new_empty(t), logits.new_empty(t), tokens.new_empty(t, num), logits.new_empty(t, num)
    out = (
        tokens.new_empty(b, max_path), tokens.new_empty(b), tokens.new_empty(b, max_path),
        logits.new_empty(b, max_path),
        tokens.new_empty(b, max_path, num), logits.new_empty(b, max_path, num),
    )  # fmt: skip
    parents, cu_t = parents.contiguous(), cu_t.contiguous()
    if t:
        c, logits, edited = pick_config(vocab), rows(logits), None if edited is None else rows(edited)
        pick_nodes_kernel[(t,)](
            logits, edited, parents, cu_t, *(law.contiguous() for law in laws), *picked, vocab, num, b,
            logits.stride(0), 0 if edited is None else edited.stride(0), LOGPROBS=with_logprobs, SIZE=sort_size(num), BLOCK=c.block,
            BLOCK_B=triton.next_power_of_2(b), PLANTED_BUG=bug, num_warps=c.num_warps, **OPTIONS,
        )  # fmt: skip
    if b:
        walk_kernel[(b,)](
            tokens.contiguous(), parents, cu_t, *picked, *out, max_path, num,
            SIZE=sort_size(num), BLOCK_T=32, PLANTED_BUG=bug, num_warps=1,
        )  # fmt: skip
    return out


def aot_cases() -> list[AotCase]:
    """Trees over a vocabulary of 49152, without and with logprobs of 8 tokens, and their walk."""
    c, cases = pick_config(49152), []
    for num in (0, 8):
        constants = {"SIZE": sort_size(num), "PLANTED_BUG": ""}
        picked = {
            "token_ptr": "*i32",
            "logprob_ptr": "*fp32",
            "top_tokens_ptr": "*i32",
            "top_logprobs_ptr": "*fp32",
        }
        law_types = {f"{name}_ptr": kind for name, kind in LAW_TYPES.items()}
        nodes = {"LOGPROBS": True, "BLOCK": c.block, "BLOCK_B": 8, **constants}
        signature = {
            "logits_ptr": "*fp32", "edited_ptr": "*fp32", "parents_ptr": "*i32", "cu_t_ptr": "*i32", "position_ptr": "*i32",
            **law_types, **picked,
            "vocab": "i32", "num": "i32", "requests": "i32", "logits_stride_t": "i32", "edited_stride_t": "i32",
            "LOGPROBS": "constexpr", "SIZE": "constexpr", "BLOCK": "constexpr", "BLOCK_B": "constexpr",
            "PLANTED_BUG": "constexpr",
        }  # fmt: skip
        if not num:
            signature["edited_ptr"], nodes["edited_ptr"] = "constexpr", None
        cases.append(
            AotCase(
                f"verify_tree-nodes-N{num}",
                pick_nodes_kernel,
                signature,
                nodes,
                num_warps=c.num_warps,
                options=OPTIONS,
            )
        )
        walk = {
            "tokens_ptr": "*i32", "parents_ptr": "*i32", "cu_t_ptr": "*i32", **picked, "path_ptr": "*i32",
            "path_len_ptr": "*i32", "emitted_ptr": "*i32", "out_logprobs_ptr": "*fp32",
            "out_top_tokens_ptr": "*i32",
            "out_top_logprobs_ptr": "*fp32", "max_path": "i32", "num": "i32", "SIZE": "constexpr",
            "BLOCK_T": "constexpr", "PLANTED_BUG": "constexpr",
        }  # fmt: skip
        cases.append(
            AotCase(f"verify_tree-walk-N{num}", walk_kernel, walk, {"BLOCK_T": 32, **constants}, num_warps=1)
        )
    return cases
