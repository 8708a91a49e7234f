# SPDX-License-Identifier: Apache-2.0
"""Tiny models that generate text on an emulated GPU, and what they must give: the tokens of the CPU's executor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import model_gguf
from tiny import tiny_model, tiny_tokenizer
from tiny_heads import eagle3_config, eagle3_folder

from pyspec import backends
from pyspec.engine import LLM, Completion, SamplingParams
from pyspec.trees.policy import StaticPolicy
from pyspec.trees.shapes import parse_shape
from pyspec.trees.token_tree import Drawn

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
    "edited": SamplingParams(
        max_tokens=5, ignore_eos=True, logprobs=1, temperature=1.1, seed=4, repetition_penalty=1.4, presence_penalty=0.3,
        frequency_penalty=0.2, logit_bias={9: 3.0, 41: 2.0}, banned_tokens=[17], allowed_tokens=range(200),
    ),
}  # fmt: skip
DRAWN = StaticPolicy(
    parse_shape("2-1"), Drawn.WITHOUT_REPLACEMENT
)  # of the tree that a rejection verifier walks
SPECULATION = ("off", "random")
CPU = "compiled" if backends.native is not None else "spec"


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


def head(model: Path, path: Path) -> Path:
    """An EAGLE-3 head for a folder's model, over 256 of its 320 tokens."""
    size = {name: SIZES[name] for name in SIZES if name != "num_hidden_layers"}
    return eagle3_folder(path, eagle3_config(draft_vocab_size=256, **size))


def generate(model: Path, executor: str, params: SamplingParams, **options: Any) -> list[Completion]:
    llm = LLM(model, executor=executor, **{**OPTIONS, **options})
    assert llm.executor_name.startswith(executor if executor != "compiled" else "cpu")
    done = llm.generate(PROMPTS, params)
    assert llm.free_pages == llm.num_pages
    return done


def logprob_error(model: Path) -> float:
    """How far logprobs of the GPU's and the CPU's kernels may lie apart. Over bf16 pages the CPU's attention rounds queries and weights to
    bf16 (2^-9 of each), GPU kernels keep both in two parts. Layers of a GGUF file quantise their rows to int8: one that is rounded
    otherwise is a step of 2^-7 of its row's largest value."""
    return 2**-4 if model.suffix == ".gguf" else 2**-6


def check(model: Path, executor: str, sampling: str, speculation: str) -> None:
    """Both prompts in one batch, plain or with trees of random shapes, against the CPU's plain decoding."""
    want = generate(model, CPU, SAMPLING[sampling], speculation="off", max_batch=1)
    got = generate(model, executor, SAMPLING[sampling], speculation=speculation, max_batch=2)
    assert [c.token_ids for c in got] == [c.token_ids for c in want]
    for a, b in zip(got, want, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=logprob_error(model))
    if speculation != "off":
        assert sum(c.stats.drafted_nodes for c in got) > 0


def check_head(model: Path, executor: str, head: Path) -> None:
    """A head's trees change no token, and some of its nodes are right."""
    params = replace(
        SAMPLING["sampled"], temperature=8.0, top_k=0, top_p=1.0, min_p=0.0
    )  # much noise, which drafts know
    want = generate(model, CPU, params, speculation="off", max_batch=1)
    got = generate(model, executor, params, speculation="always", draft=head, max_batch=2)
    assert [c.token_ids for c in got] == [c.token_ids for c in want]
    assert fewer_steps(got)


def check_rejection(model: Path, executor: str, verifier: str) -> None:
    """A verifier with fresh randomness, of trees that layers of the model draw: the same steps and tokens as on the CPU, which has other
    roundings but here no draw so close to them."""
    options = {
        "speculation": "always",
        "draft": ("layer_skip", [0]),
        "draft_policy": DRAWN,
        "verifier": verifier,
    }
    params = replace(SAMPLING["edited"], temperature=0.8)
    done = [generate(model, name, params, max_batch=2, **options) for name in (CPU, executor)]
    want, got = ([(c.token_ids, c.stats.steps, c.stats.drafted_nodes) for c in every] for every in done)
    assert got == want
    assert fewer_steps(done[1])


def fewer_steps(done: list[Completion]) -> bool:
    """Whether some answer took fewer steps than plain decoding: the prompt's gives a token, and each of them one more."""
    return any(c.stats.steps < len(c.token_ids) - 1 for c in done)
