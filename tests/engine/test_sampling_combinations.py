# SPDX-License-Identifier: Apache-2.0
"""Random combinations of all sampling parameters in one batch: with foreseeing trees as in plain decoding, and as written plainly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain_sampling
import pytest
from contract_tests import native
from test_sampling_parameters import END, LETTERS, PROMPTS, Engines, bits, foresee
from tiny import VOCAB_SIZE

from pyspec.engine import SamplingParams


@pytest.fixture(scope="module")
def engines(tiny_model: Callable[[str], Path]) -> Engines:
    return Engines(tiny_model("qwen3"))


def combination(rng: np.random.Generator) -> SamplingParams:
    """Each parameter is in use in about a third of the combinations; a few tokens are likely, so that trees are accepted."""
    some = lambda: bool(rng.random() < 0.35)
    ids = lambda most: rng.choice(VOCAB_SIZE, int(rng.integers(1, most)), replace=False).tolist()
    values: dict[str, Any] = {
        "temperature": float(rng.choice([0.0, 0.3, 0.8, 1.0, 1.6])),
        "seed": int(rng.integers(-(2**40), 2**40)),
        "max_tokens": int(rng.integers(8, 25)),
        "logprobs": int(rng.integers(0, 4)),
        "logit_bias": {token: float(rng.normal(9, 1)) for token in [*LETTERS, *ids(5)]},
        "ignore_eos": some(),
    }
    choices: dict[str, Callable[[], Any]] = {
        "top_k": lambda: int(rng.integers(1, 60)),
        "top_p": lambda: float(rng.uniform(0.5, 1)),
        "min_p": lambda: float(rng.uniform(0, 0.1)),
        "typical_p": lambda: float(rng.uniform(0.5, 1)),
        "repetition_penalty": lambda: float(rng.uniform(0.7, 1.6)),
        "presence_penalty": lambda: float(rng.uniform(-1, 1)),
        "frequency_penalty": lambda: float(rng.uniform(-0.5, 0.7)),
        "banned_tokens": lambda: ids(200),
        "allowed_tokens": lambda: [*LETTERS, END, *ids(100)],
        "min_tokens": lambda: int(rng.integers(1, 8)),
        "stop_token_ids": lambda: ids(3),
        "stop": lambda: ("ab", "dd"),
        "stream_index": lambda: int(rng.integers(0, 9)),
    }
    values |= {name: draw() for name, draw in choices.items() if some()}
    if some():
        values["logit_bias"][END] = 9.0
    return SamplingParams(**values)


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_of_random_combinations(engines: Engines, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    each = [combination(rng) for _ in range(10)]
    prompts = [PROMPTS[int(rng.integers(len(PROMPTS)))] for _ in each]
    done = engines.others[2].generate(prompts, each)
    for prompt, params, completion in zip(prompts, each, done, strict=True):
        plain_sampling.check(engines.plain, prompt, params, completion)
    if native is None:
        return
    want = [bits(engines.plain.generate([p], q)[0]) for p, q in zip(prompts, each, strict=True)]
    assert [bits(completion) for completion in done] == want
    # What the answers would go on with if nothing ended them, as drafts.
    longer = [
        replace(q, max_tokens=30, min_tokens=0, ignore_eos=True, stop=(), stop_token_ids=()) for q in each
    ]
    coming = {(i, 0): c.token_ids for i, c in enumerate(engines.others[3].generate(prompts, longer))}
    llm = engines.others[0]
    foresee(monkeypatch, llm, coming)
    assert [bits(completion) for completion in llm.generate(prompts, each)] == want
    assert llm.free_pages == llm.num_pages
