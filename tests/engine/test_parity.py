# SPDX-License-Identifier: Apache-2.0
"""Logits of every architecture against transformers, on every executor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contract_tests import native
from tiny import TINY
from transformers import AutoModelForCausalLM

from pyspec.engine import LLM

EXECUTORS = [
    "spec",
    pytest.param("compiled", marks=pytest.mark.skipif(native is None, reason="pyspec._C is not compiled")),
]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", sorted(TINY))
def test_logits_equal_transformers(name: str, executor: str, tiny_model: Callable[[str], Path]) -> None:
    """Error against transformers in float64 at most twice that of transformers in bf16 (design: FlashAttention's rule)."""
    path = tiny_model(name)
    tokens = [1 + (7 * i * i + 3 * i) % 250 for i in range(40)]
    ids = torch.tensor([tokens])
    with torch.no_grad():
        load = lambda dtype: AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation="eager"
        )
        exact = load(torch.float64)(ids).logits[0].double()
        low = load(torch.bfloat16)(ids).logits[0].double()
    llm = LLM(path, executor=executor, max_batch=2, max_context=64, kv_dtype="f32", speculation="off")
    got = llm.prompt_logits(tokens).double()[:, : exact.size(1)]
    assert got.shape == exact.shape
    assert (got - exact).abs().max() <= 2 * (low - exact).abs().max()
    assert (
        got - exact
    ).abs().max() <= 1e-3 * exact.abs().max() + 1e-4  # f32 weights and cache: far closer than bf16
