# SPDX-License-Identifier: Apache-2.0
"""sample in Triton: one token from each row of logits, bit for bit as the specification, pyspec/spec/sample.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pyspec import spec

from .dots import rows
from .pipeline import pick, pick_config


@triton.jit
def sample_kernel(
    logits_ptr, positions_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, stream_ptr,
    token_ptr, logprob_ptr, top_tokens_ptr, top_logprobs_ptr, vocab, logits_stride_t,
    NUM_LOGPROBS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row."""
    t = tl.program_id(0).to(tl.int64)
    vocab = tl.full([], 0, tl.int32) + vocab  # a number also where Triton makes 1 a constant
    pick(
        logits_ptr + t * logits_stride_t, vocab, tl.load(positions_ptr + t), tl.load(temperature_ptr + t),
        tl.load(top_k_ptr + t), tl.load(top_p_ptr + t), tl.load(min_p_ptr + t), tl.load(seed_ptr + t),
        tl.load(stream_ptr + t), token_ptr + t, logprob_ptr + t, top_tokens_ptr + t * NUM_LOGPROBS,
        top_logprobs_ptr + t * NUM_LOGPROBS, NUM_LOGPROBS, SIZE, BLOCK,
    )  # fmt: skip


def sample(
    logits: Tensor, positions: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seed: Tensor,
    stream: Tensor, *, num_logprobs: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """token [T], logprob [T], and the num_logprobs first tokens of each row with their logprobs."""
    laws = (positions, temperature, top_k, top_p, min_p, seed, stream)
    sizes = spec.sample.bind((logits, *laws))
    t, vocab = sizes["T"], sizes["V"]
    token, logprob = positions.new_empty(t), logits.new_empty(t)
    top_tokens, top_logprobs = positions.new_empty(t, num_logprobs), logits.new_empty(t, num_logprobs)
    if t:
        c, logits = pick_config(vocab), rows(logits)
        sample_kernel[(t,)](
            logits, *(law.contiguous() for law in laws), token, logprob, top_tokens, top_logprobs, vocab,
            logits.stride(0), NUM_LOGPROBS=num_logprobs, SIZE=max(2, triton.next_power_of_2(num_logprobs)),
            BLOCK=c.block, num_warps=c.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return token, logprob, top_tokens, top_logprobs
