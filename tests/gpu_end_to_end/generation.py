# SPDX-License-Identifier: Apache-2.0
"""Tiny models that generate text on an emulated GPU, and what they must give: the tokens of the CPU's executor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import model_gguf
from tiny import tiny_model, tiny_tokenizer

from pyspec import backends
from pyspec.engine import LLM, Completion, SamplingParams

# Two layers of two heads of 64, the smallest that attention on GPUs takes, over one KV head.
SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 64,
}  # fmt: skip
OPTIONS: dict[str, Any] = {
    "max_context": 64,
    "max_nodes": 5,
    "page_size": 16,
    "prefill_chunk": 8,
    "calibrate": False,
}
PROMPTS = [
    [5, 9, 17, 5, 9, 17, 5, 9],
    [40, 41, 40, 41, 40, 41, 40, 41, 40, 41, 40],
]  # the second takes two chunks
SAMPLING = {
    "greedy": SamplingParams(max_tokens=5, ignore_eos=True, logprobs=1),
    "sampled": SamplingParams(max_tokens=5, ignore_eos=True, logprobs=1, temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, seed=3),
}  # fmt: skip
SPECULATION = ("off", "random")
CPU = "compiled" if backends.native is not None else "spec"
# Logits of the GPU's kernels and of the CPU's differ by the rounding of sums and of values in the bf16 cache.
LOGPROB_ERROR = 2**-7


def folder(architecture: str, path: Path) -> Path:
    """A Hugging Face folder with bf16 weights."""
    model = tiny_model(architecture, **SIZES).to(torch.bfloat16)
    model.save_pretrained(path)
    tiny_tokenizer().save(str(path / "tokenizer.json"))
    return path


def gguf(path: Path) -> Path:
    """A GGUF file of two formats: parts of one projection differ in it."""
    format = lambda name: "q4_0" if "attn_v" in name or "ffn_down" in name else "q8_0"
    return model_gguf(path, tiny_model("llama-tied", **SIZES), "llama", quantise=format)


def generate(model: Path, executor: str, params: SamplingParams, **options: Any) -> list[Completion]:
    llm = LLM(model, executor=executor, **{**OPTIONS, **options})
    assert llm.executor_name.startswith(executor if executor != "compiled" else "cpu")
    done = llm.generate(PROMPTS, params)
    assert llm.free_pages == llm.num_pages
    return done


def check(model: Path, executor: str, sampling: str, speculation: str) -> None:
    """Both prompts in one batch, plain or with trees of random shapes, against the CPU's plain decoding."""
    want = generate(model, CPU, SAMPLING[sampling], speculation="off", max_batch=1)
    got = generate(model, executor, SAMPLING[sampling], speculation=speculation, max_batch=2)
    assert [c.token_ids for c in got] == [c.token_ids for c in want]
    for a, b in zip(got, want, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=LOGPROB_ERROR)
    if speculation != "off":
        assert sum(c.stats.drafted_nodes for c in got) > 0
