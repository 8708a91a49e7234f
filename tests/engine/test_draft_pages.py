# SPDX-License-Identifier: Apache-2.0
"""Pages of drafts' models: as many as the texts need, none where there are none, all given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from contract_tests import native
from test_drafts import PROMPTS, SAMPLED, SIZES, bits, check_pages
from tiny import tiny_checkpoint

from pyspec.drafts.model import ModelDraft
from pyspec.engine import LLM, SamplingParams
from pyspec.trees.policy import BestFirstPolicy

pytestmark = pytest.mark.skipif(native is None, reason="bit equality is the compiled backend's promise")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of one layer with the tokenizer of all tiny models."""
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("draft") / "small", num_hidden_layers=1)


def test_a_drafts_pages_grow_with_the_text(small: Path, tiny_model: Callable[[str], Path]) -> None:
    policy = BestFirstPolicy(max_depth=3, beam=2)
    llm = LLM(
        tiny_model("llama"),
        draft=small,
        draft_policy=policy,
        speculation="always",
        page_size=4,
        max_batch=2,
        **SIZES,
    )
    draft = llm._speculator.drafts[0]
    assert isinstance(draft, ModelDraft)
    runner, taken = draft.runner, set[int]()
    private = 2  # of the second chain: a page where the text may end, and one where its deepest node may lie
    for _ in llm.stream(PROMPTS[0], SamplingParams(max_tokens=60, ignore_eos=True)):
        used = runner.num_pages - runner.free_pages
        taken.add(used)
        (state,) = [
            state for request in llm._scheduler.running for state in request.draft.states.values()
        ] or [None]
        if state is not None and state.text.length:
            assert used == -(-(state.text.length + 3) // 4) + private
    assert len(taken) > 8
    check_pages(llm)


def test_texts_without_pages_for_a_draft_go_on_plainly(
    small: Path, tiny_model: Callable[[str], Path]
) -> None:
    """Samples share the pages of their prompt, their drafts do not: there may be too few for all of them."""
    params = SamplingParams(max_tokens=8, n=4, logprobs=0, ignore_eos=True, **SAMPLED)
    prompt = [5 + (7 * i) % 40 for i in range(60)]
    model, sizes = tiny_model("llama"), {**SIZES, "page_size": 4, "max_batch": 4}
    plain = LLM(model, speculation="off", **sizes).generate([prompt], params)
    llm = LLM(model, draft=small, speculation="always", num_pages=14 + 4 * 6, **sizes)
    done = llm.generate([prompt], params)
    assert list(map(bits, done)) == list(map(bits, plain))
    assert any("texts must fit" in reason for c in done for reason in c.stats.drafts_off)
    assert any(c.stats.drafted_nodes and not c.stats.draft_failures for c in done)
    check_pages(llm)
