# SPDX-License-Identifier: Apache-2.0
"""LLM(kv_dtype="int8"): trees, batches and shared prefills change nothing; near the f32 cache; half of bf16's bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_tests import native
from test_identity import PROMPTS, bits, params

from pyspec import UnsupportedError
from pyspec.engine import LLM

OPTIONS: dict[str, Any] = {"max_context": 256, "calibrate": False, "kv_dtype": "int8"}
SAMPLING = {"greedy": params(), "sampled": params(temperature=0.8, seed=3)}


@pytest.mark.skipif(native is None, reason="bit equality is the compiled backend's promise")
@pytest.mark.parametrize("sampling", SAMPLING)
def test_trees_batches_and_pages_change_nothing(sampling: str, tiny_model: Callable[[str], Path]) -> None:
    path = tiny_model("llama")
    plain = LLM(path, speculation="off", max_batch=1, **OPTIONS)
    want = [bits(c) for c in plain.generate(PROMPTS, SAMPLING[sampling])]
    for mode, batch, chunk, page_size in [("random", 5, 16, 48), ("suffix", 3, 7, 5)]:
        llm = LLM(
            path, speculation=mode, max_batch=batch, prefill_chunk=chunk, page_size=page_size, **OPTIONS
        )
        got = [bits(c) for c in llm.generate(PROMPTS, SAMPLING[sampling])]
        assert got == want, (mode, page_size)


@pytest.mark.parametrize("executor", ["compiled", "spec"])
def test_logits_are_near_those_of_the_f32_cache(executor: str, tiny_model: Callable[[str], Path]) -> None:
    if executor == "compiled" and native is None:
        pytest.skip("pyspec._C is not compiled")
    make = lambda kv_dtype: LLM(
        tiny_model("llama"),
        executor=executor,
        speculation="off",
        max_batch=2,
        max_context=96,
        kv_dtype=kv_dtype,
    )
    got, want = (make(kv_dtype).prompt_logits(PROMPTS[1]) for kv_dtype in ("int8", "f32"))
    error = ((got - want).norm() / want.norm()).item()
    assert 0 < error < 0.03  # a row's step is 1/127 of its largest element


def test_memory_is_that_of_int8_and_scales(tiny_model: Callable[[str], Path]) -> None:
    options = {**OPTIONS, "speculation": "off", "max_batch": 1}
    int8, bf16 = (LLM(tiny_model("llama"), **{**options, "kv_dtype": name}) for name in ("int8", "bf16"))
    head_dim = int8.config.head_dim
    assert int8.memory_bytes()["kv"] * 2 * head_dim == bf16.memory_bytes()["kv"] * (head_dim + 4)


def test_gpu_executors_refuse_it(tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(
        UnsupportedError, match=r"'triton' cannot run: kv_dtype must be bf16\|f16\|f32 on GPUs"
    ):
        LLM(tiny_model("llama"), executor="triton", **OPTIONS)
