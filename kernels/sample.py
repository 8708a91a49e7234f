# SPDX-License-Identifier: Apache-2.0
"""sample in Triton: one token from each row of logits, bit for bit as pyspec/spec/sample.py."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .aot import AotCase
from .dots import rows
from .pick import pick
from .pipeline import OPTIONS, pick_config, sort_size

LAW_TYPES = {
    "temperature": "*fp32", "top_k": "*i32", "top_p": "*fp32", "min_p": "*fp32", "typical_p": "*fp32",
    "seed": "*i64", "stream": "*i32",
}  # fmt: skip


@triton.jit(do_not_specialize=["num"])
def sample_kernel(
    logits_ptr, edited_ptr, positions_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, typical_p_ptr,
    seed_ptr, stream_ptr, token_ptr, logprob_ptr, top_tokens_ptr, top_logprobs_ptr, vocab, num,
    logits_stride_t, edited_stride_t, LOGPROBS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr, PLANTED_BUG: tl.constexpr = "",
):  # fmt: skip
    """One row."""
    t = tl.program_id(0).to(tl.int64)
    vocab = (
        tl.full([], 1 if PLANTED_BUG == "one more" else 0, tl.int32) + vocab
    )  # a number also where it is 1
    out = t * 0 if PLANTED_BUG == "one row" else t
    position = tl.load(positions_ptr + t) + (1 if PLANTED_BUG == "next position" else 0)
    if edited_ptr is not None:
        edited_ptr += t * edited_stride_t
    pick(
        logits_ptr + t * logits_stride_t, edited_ptr, vocab, position, tl.load(temperature_ptr + t),
        tl.load(top_k_ptr + t), tl.load(top_p_ptr + t), tl.load(min_p_ptr + t), tl.load(typical_p_ptr + t),
        tl.load(seed_ptr + t), tl.load(stream_ptr + t), token_ptr + out, logprob_ptr + out,
        top_tokens_ptr + out * num, top_logprobs_ptr + out * num, num, LOGPROBS, SIZE, BLOCK, PLANTED_BUG,
    )  # fmt: skip


def sample(
    logits: Tensor, positions: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor,
    typical_p: Tensor, seed: Tensor, stream: Tensor, edited: Tensor | None = None, *,
    num_logprobs: int = 0, with_logprobs: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """token [T], logprob [T], and the num_logprobs first tokens of each row with their logprobs."""
    laws = (positions, temperature, top_k, top_p, min_p, typical_p, seed, stream)
    return _launch(logits, laws, num_logprobs, edited=edited, with_logprobs=with_logprobs)


def _launch(
    logits: Tensor,
    laws: tuple[Tensor, ...],
    num: int,
    bug: str = "",
    edited: Tensor | None = None,
    with_logprobs: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    t, vocab = logits.shape
    ints = laws[0]
    out = ints.new_empty(t), logits.new_empty(t), ints.new_empty(t, num), logits.new_empty(t, num)
    if t:
        c, logits, edited = pick_config(vocab), rows(logits), None if edited is None else rows(edited)
        sample_kernel[(t,)](
            logits, edited, *(law.contiguous() for law in laws), *out, vocab, num, logits.stride(0),
            0 if edited is None else edited.stride(0),
            LOGPROBS=with_logprobs, SIZE=sort_size(num), BLOCK=c.block, PLANTED_BUG=bug,
            num_warps=c.num_warps, **OPTIONS,
        )  # fmt: skip
    return out


def aot_cases() -> list[AotCase]:
    """Small and large vocabularies, without and with logprobs of 8 tokens, the latter of edited rows too."""
    cases = []
    for vocab, num in ((1024, 0), (49152, 0), (49152, 8)):
        c = pick_config(vocab)
        signature = {
            "logits_ptr": "*fp32", "edited_ptr": "*fp32", "positions_ptr": "*i32",
            **{f"{name}_ptr": kind for name, kind in LAW_TYPES.items()},
            "token_ptr": "*i32", "logprob_ptr": "*fp32", "top_tokens_ptr": "*i32",
            "top_logprobs_ptr": "*fp32",
            "vocab": "i32", "num": "i32", "logits_stride_t": "i32", "edited_stride_t": "i32",
            "LOGPROBS": "constexpr",
            "SIZE": "constexpr", "BLOCK": "constexpr", "PLANTED_BUG": "constexpr",
        }  # fmt: skip
        constants = {"LOGPROBS": True, "SIZE": sort_size(num), "BLOCK": c.block, "PLANTED_BUG": ""}
        if not num:
            signature["edited_ptr"], constants["edited_ptr"] = "constexpr", None
        cases.append(
            AotCase(
                f"sample-V{vocab}-N{num}",
                sample_kernel,
                signature,
                constants,
                num_warps=c.num_warps,
                options=OPTIONS,
            )
        )
    return cases
