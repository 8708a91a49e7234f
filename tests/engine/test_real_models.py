# SPDX-License-Identifier: Apache-2.0
"""Real quantised models: sensible text, the same bits with every tree, perplexity of the quantised kernels."""

from __future__ import annotations

import struct

import pytest
from contract_tests import native
from real_models import cached_model

from bench.bench_perplexity import LIMIT, dequantised, perplexity
from pyspec.engine import LLM, SamplingParams

pytestmark = pytest.mark.skipif(
    native is None, reason="pyspec._C is not compiled: the specification takes minutes"
)
CODE = (
    "def add(a, b):\n    return a + b\n\n\ndef subtract(a, b):\n    return a - b\n\n\ndef multiply(a, b):\n"
)


@pytest.mark.parametrize(
    ("name", "prompt", "word"),
    [
        ("smollm2-135m-instruct", "The capital of France is", "Paris"),
        (
            "gemma3-270m",
            "The history of the Roman Empire begins with",
            "Roman",
        ),  # q4_k, q5_0, q6_k, q8_0; one KV head of 256
        ("smollm2-135m-instruct", CODE, "a * b"),
    ],
)
def test_text_and_bits_with_and_without_trees(name: str, prompt: str, word: str) -> None:
    llm = LLM(cached_model(name), speculation="suffix", max_batch=2, max_context=512)
    answers = []
    for speculation in ("off", "suffix", "random"):
        params = SamplingParams(max_tokens=32, logprobs=0, speculation=speculation)
        done = llm.generate([prompt, "Once upon a time"], params)
        answers.append([(c.token_ids, [struct.pack("f", p) for p in c.logprobs or []]) for c in done])
        assert word in done[0].text
    assert answers[0] == answers[1] == answers[2]


def test_perplexity_is_within_one_percent_of_dense_weights() -> None:
    make = lambda model: LLM(
        model, speculation="off", max_batch=16, max_nodes=32, max_context=512, kv_dtype="f32"
    )
    quantised = make(cached_model("smollm2-135m-instruct"))
    want = perplexity(make(dequantised(quantised.checkpoint)), windows=1)
    assert perplexity(quantised, windows=1) == pytest.approx(want, rel=LIMIT)
