# SPDX-License-Identifier: Apache-2.0
"""Speculation never changes the answer: tokens and bits of logprobs with trees, in batches, on any schedule."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from contract_tests import native

from pyspec.engine import LLM, Completion, SamplingParams

pytestmark = pytest.mark.skipif(
    native is None, reason="bit equality is the compiled backend's promise: pyspec._C is missing"
)
PROMPTS = [
    [5 + (3 * i * i + i * k) % 40 for i in range(4 + 17 * k)] for k in range(1, 6)
]  # repetitive, 21 to 89 tokens


def bits(completion: Completion) -> tuple[list[int], list[bytes], str]:
    assert completion.logprobs is not None
    return completion.token_ids, [struct.pack("f", p) for p in completion.logprobs], completion.finish_reason


def params(**kwargs: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 40, "logprobs": 0, "ignore_eos": True, **kwargs})


SAMPLING = {
    "greedy": params(),
    "t0.7": params(temperature=0.7, seed=11),
    "t1-filters": params(temperature=1.0, top_k=40, top_p=0.9, min_p=0.02, seed=5),
}


@pytest.mark.parametrize("sampling", sorted(SAMPLING))
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3", "mistral"])
def test_trees_and_batches_change_nothing(
    name: str, sampling: str, tiny_model: Callable[[str], Path]
) -> None:
    options: dict[str, Any] = {"max_context": 256, "calibrate": False}
    plain = LLM(tiny_model(name), speculation="off", max_batch=1, **options)
    want = [bits(c) for c in plain.generate(PROMPTS, SAMPLING[sampling])]
    for mode, batch, chunk, kinds in [
        ("random", 1, 256, {}),
        ("random", 5, 16, {"page_size": 48}),
        ("suffix", 3, 7, {}),
        ("auto", 4, 64, {}),
    ]:
        llm = LLM(
            tiny_model(name),
            speculation=mode,
            max_batch=batch,
            prefill_chunk=chunk,
            max_nodes=24,
            **kinds,
            **options,
        )
        got = [bits(c) for c in llm.generate(PROMPTS, SAMPLING[sampling])]
        assert got == want, f"speculation={mode} max_batch={batch} prefill_chunk={chunk}"
        assert llm.free_pages == llm.num_pages


def test_mixed_batch_of_speculating_and_plain_requests(tiny_model: Callable[[str], Path]) -> None:
    path = tiny_model("llama")
    plain = LLM(path, speculation="off", max_context=256)
    every = [params(temperature=0.1 * i, seed=i, speculation=mode, max_tokens=10 + 7 * i)
             for i, mode in enumerate(["off", "suffix", "ngram", "random", None])]  # fmt: skip
    want = [
        bits(plain.generate([p], s)[0])
        for p, s in zip(
            PROMPTS,
            [params(temperature=0.1 * i, seed=i, max_tokens=10 + 7 * i, speculation="off") for i in range(5)],
            strict=True,
        )
    ]
    got = [bits(c) for c in LLM(path, speculation="suffix", max_context=256).generate(PROMPTS, every)]
    assert got == want


def test_streams_of_one_seed_differ_and_repeat(tiny_model: Callable[[str], Path]) -> None:
    llm = LLM(tiny_model("llama"), speculation="suffix", max_context=128)
    run = lambda stream: (
        llm.generate([PROMPTS[0]], params(temperature=1.0, seed=3, stream_index=stream))[0].token_ids
    )
    assert run(0) == run(0)
    assert run(0) != run(1)
