# SPDX-License-Identifier: Apache-2.0
"""The compiled walk against verify_tree and commit_kv called one by one: outputs and cache, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pyspec import LLM, SamplingParams
from pyspec.engine.batch import Work
from pyspec.engine.compiled import CompiledExecutor
from pyspec.engine.request import Request
from pyspec.engine.text import TextStream
from pyspec.engine.verification import verify_on_host
from pyspec.trees import TokenTree

LAWS = [
    SamplingParams(),
    SamplingParams(temperature=0.8, seed=3, stream_index=2),
    SamplingParams(temperature=1.2, top_k=3, top_p=0.9, seed=-4),
    SamplingParams(temperature=1.0, min_p=0.01, typical_p=0.9, seed=9),
]


def branchy(generator: np.random.Generator, size: int) -> TokenTree:
    """A tree in which every token of a tiny vocabulary is likely: walks are long and leave the first branch."""
    children: list[set[int]] = [set()]
    tokens, parents = [0], [-1]
    while len(tokens) < size:
        parent, token = int(generator.integers(len(tokens))), int(generator.integers(8))
        if token not in children[parent]:
            children[parent].add(token)
            children.append(set())
            tokens.append(token)
            parents.append(parent)
    return TokenTree(tokens, parents)


@pytest.mark.parametrize("num_logprobs", [None, 0, 5])
def test_walk_is_that_of_the_ops(tiny_model: Callable[[str], Path], num_logprobs: int | None) -> None:
    llm = LLM(tiny_model("llama"), max_batch=5, max_nodes=24, max_context=64, page_size=4, calibrate=False)
    executor, batch, cache = llm._executor, llm._batch, llm._cache
    if not isinstance(executor, CompiledExecutor):
        pytest.skip("the kernels are not compiled")
    generator, moved, branched = np.random.default_rng(0), 0, 0
    for round_ in range(12):
        works = []
        for b, params in enumerate(LAWS):
            pages = list(range(16 * b, 16 * b + 16))
            request = Request([0], params, TextStream(None, ()), None, 1, pages=pages, kv_len=5 + round_ + b)
            works.append(Work.decode(request, branchy(generator, 1 + int(generator.integers(24)))))
        prompt = Request([1, 2, 3], LAWS[0], TextStream(None, ()), None, 1, pages=[70, 71])
        works.insert(round_ % 5, Work.prefill(prompt, 2))  # has no row of logits
        batch.fill(works)
        logits = executor.logits()
        logits[:] = torch.from_numpy(generator.standard_normal(logits.shape, dtype=np.float32))
        logits[:, :8] += 4.0
        cache.k.copy_(torch.from_numpy(generator.standard_normal(cache.k.shape, dtype=np.float32)))
        cache.v.copy_(cache.k * 2)
        before = cache.k.clone(), cache.v.clone()
        expected = verify_on_host(batch, logits, executor._commit, num_logprobs)
        after = cache.k.clone(), cache.v.clone()
        cache.k.copy_(before[0])
        cache.v.copy_(before[1])
        found = executor.verify(num_logprobs)
        for name, one, other in zip(found._fields, found, expected, strict=True):
            assert one.tobytes() == np.ascontiguousarray(other).tobytes(), name
        assert torch.equal(cache.k, after[0])
        assert torch.equal(cache.v, after[1])
        moved += not torch.equal(before[0], after[0])
        branched += int((found.path_len > 1).any())
    assert moved
    assert branched


def test_edited_rows(tiny_model: Callable[[str], Path]) -> None:
    """Penalties and bans of one request, beside one without, choose as verify_tree does with edited rows."""
    llm = LLM(tiny_model("llama"), max_batch=2, max_nodes=8, max_context=64, calibrate=False)
    params = [
        SamplingParams(max_tokens=12, repetition_penalty=1.4, banned_tokens=(5, 9)),
        SamplingParams(max_tokens=12),
    ]
    together = llm.generate([[1, 2, 3], [1, 2, 3]], params)
    alone = [llm.generate([[1, 2, 3]], p)[0] for p in params]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert together[0].token_ids != together[1].token_ids
