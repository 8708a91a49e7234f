# SPDX-License-Identifier: Apache-2.0
"""A draft model with another tokenizer: the answers of plain decoding, and trees that are the draft's own greedy text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from head_runner import OPTIONS, Steps
from safetensors.torch import load_file, save_file
from test_alignment import byte_level, sentence_piece
from tiny import tiny_checkpoint

from pyspec.drafts.aligned import AlignedDraft, AlignedState
from pyspec.drafts.base import Law, Proposal
from pyspec.engine import LLM, SamplingParams
from pyspec.models import Tokenizer, open_checkpoint
from pyspec.trees import Drawn
from pyspec.trees.grown_hybrid import GrownHybridPolicy
from pyspec.trees.policy import BestFirstPolicy, StaticPolicy
from pyspec.trees.shapes import parse_shape

TOKENIZERS = {"english": byte_level([("t", "h"), ("th", "e"), ("i", "n")]), "pieces": sentence_piece()}
TEXTS = ["the thing in the ether", "a thing", "é漢 the", "in"]


def checkpoint(path: Path, tokenizer: Tokenizer | None = None) -> Path:
    """A random model that writes letters: other bytes are unlikely, so that its texts are texts."""
    tiny_checkpoint("llama", path)
    if tokenizer is not None:
        tokenizer._inner.save(str(path / "tokenizer.json"))
    spell = open_checkpoint(path).tokenizer
    state = load_file(path / "model.safetensors")
    plain = [spell.token_bytes(t) for t in range(320)]
    letters = torch.tensor(
        [t not in spell.special_ids and p.isascii() and p.strip().isalpha() for t, p in enumerate(plain)]
    )
    state["lm_head.weight"] *= torch.where(letters, 8.0, 0.0)[:, None]
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("name", TOKENIZERS)
def test_answers_are_those_of_plain_decoding(name: str, tmp_path: Path) -> None:
    target = checkpoint(tmp_path / "target")
    draft = checkpoint(tmp_path / "draft", TOKENIZERS[name])
    drafted = LLM(target, speculation="always", draft=draft, **OPTIONS)
    plain = LLM(target, speculation="off", **OPTIONS)
    params = [
        SamplingParams(max_tokens=20, temperature=t, seed=i, logprobs=1, ignore_eos=True)
        for i, t in enumerate((0.0, 0.7, 1.0, 1.0))
    ]
    steps = Steps()
    with drafted.observed_by(steps):
        for size in (1, 4):
            pairs = zip(*(llm.generate(TEXTS[:size], params[:size]) for llm in (drafted, plain)), strict=True)
            assert all((a.token_ids, a.logprobs) == (b.token_ids, b.logprobs) for a, b in pairs)
    assert {record.failure for record in steps.records} == {""}
    assert sum(record.drafted for record in steps.records) > len(steps.records)


def test_trees_are_the_greedy_text_of_the_draft(tmp_path: Path) -> None:
    """What the draft says behind the text, encoded anew at every step, is what its tree says in the target's tokens."""
    target = LLM(checkpoint(tmp_path / "target"), speculation="off", **OPTIONS)
    own = checkpoint(tmp_path / "draft", TOKENIZERS["english"])
    alone = LLM(own, speculation="off", **OPTIONS)
    chain = StaticPolicy(parse_shape("chain4"), Drawn.DETERMINISTIC)
    drafted = LLM(target.checkpoint, speculation="always", draft=own, draft_policy=chain, **OPTIONS)
    steps = Steps()
    with drafted.observed_by(steps):
        (answer,) = drafted.generate(
            TEXTS[:1], SamplingParams(max_tokens=24, temperature=1.0, seed=4, ignore_eos=True)
        )
    text = target.tokenizer.encode(TEXTS[0]) + answer.token_ids
    compared = 0
    for record in steps.records:
        so_far = text[: record.root_position + 1]
        raw = b"".join(
            target.tokenizer.token_bytes(t) for t in so_far if t not in target.tokenizer.special_ids
        )
        try:
            words = raw.decode("utf-8")
        except UnicodeDecodeError:  # the random answer is no text here, or ends within a character
            continue
        if target.tokenizer.special_ids & set(so_far[1:]):
            continue  # text on both sides of a special token is encoded apart
        context = [alone.tokenizer.token_id("<s>"), *alone.tokenizer.encode(words, add_special=False)]
        (said,) = alone.generate([context], SamplingParams(max_tokens=4, ignore_eos=True))
        spelled = b"".join(map(alone.tokenizer.token_bytes, said.token_ids))
        proposed = b"".join(map(target.tokenizer.token_bytes, record.tokens[1:].tolist()))
        assert spelled.startswith(proposed), (spelled, proposed)
        compared += bool(proposed)
    assert compared >= 3


def test_entries_that_did_not_change_are_not_computed_again(tmp_path: Path) -> None:
    target = LLM(checkpoint(tmp_path / "target"), speculation="off", **OPTIONS)
    own = checkpoint(tmp_path / "draft", TOKENIZERS["english"])
    (draft,) = LLM(target.checkpoint, draft=own, **OPTIONS)._speculator.drafts
    assert isinstance(draft, AlignedDraft)
    state = draft.start(Law(), 100)
    assert isinstance(state, AlignedState)
    words = target.tokenizer.encode("the thing in the ether of the thing in", add_special=False)
    state.extend(words[:-1])
    first = draft.propose([state], [words[-1]], [4])[0]
    assert isinstance(first, Proposal)
    length = state.text.length
    assert length == len(state.alignment.tokens)
    again = draft.propose([state], [words[-1]], [4])[0]  # nothing was committed: the same proposal
    assert isinstance(again, Proposal)
    assert again.tree.tokens.tolist() == first.tree.tokens.tolist()
    state.extend([words[-1], *target.tokenizer.encode(" a", add_special=False)])
    assert length - 5 <= state.text.length <= length
    fresh = draft.start(Law(), 100)
    fresh.extend([*words, *target.tokenizer.encode(" a", add_special=False)])
    root = target.tokenizer.encode("b", add_special=False)[0]
    one, other = draft.propose([state, fresh], [root, root], [6, 6])
    assert isinstance(one, Proposal)
    assert isinstance(other, Proposal)
    assert one.tree.tokens.tolist() == other.tree.tokens.tolist()
    torch.testing.assert_close(torch.tensor(one.path_probability), torch.tensor(other.path_probability))
    state.close()
    state.close()
    fresh.close()
    assert draft._inner.runner.free_pages == draft._inner.runner.num_pages


def test_trees_drawn_with_fresh_randomness_are_refused(tmp_path: Path) -> None:
    target, own = checkpoint(tmp_path / "target"), checkpoint(tmp_path / "draft", TOKENIZERS["english"])
    with pytest.raises(
        ValueError, match="BestFirstPolicy or StaticPolicy for another tokenizer, got GrownHybridPolicy"
    ):
        LLM(target, draft=own, draft_policy=GrownHybridPolicy((2, 2)), verifier="traversal", **OPTIONS)
    (draft,) = LLM(target, draft=own, draft_policy=BestFirstPolicy(), **OPTIONS)._speculator.drafts
    assert isinstance(draft, AlignedDraft)
    assert draft.policy.drawn is Drawn.DETERMINISTIC
