# SPDX-License-Identifier: Apache-2.0
"""Heads end to end on tiny random targets: answers are those of plain decoding, and trees are what the plain heads say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from head_runner import EXECUTORS, OPTIONS, Steps
from reference_heads import eagle3, medusa, mtp, rms
from safetensors.torch import load_file, save_file
from tiny import tiny_checkpoint
from tiny_heads import eagle3_config, eagle3_folder, medusa_folder, mtp_folder, specforge_folder
from torch import Tensor

from pyspec.drafts.heads import loading
from pyspec.drafts.heads.eagle3_checkpoint import Eagle3Checkpoint
from pyspec.drafts.heads.loading import compact, head_kind, limited
from pyspec.drafts.heads.medusa import MedusaCheckpoint
from pyspec.drafts.heads.mtp import MtpCheckpoint
from pyspec.engine import LLM, SamplingParams
from pyspec.models import QuantTensor, open_checkpoint
from pyspec.models.quantize import quantize
from pyspec.trees import Drawn
from pyspec.trees.grown_hybrid import GrownHybridPolicy
from pyspec.trees.policy import BestFirstPolicy, StaticPolicy
from pyspec.trees.shapes import parse_shape

PROMPTS = [[1 + (7 * i * i) % 250 for i in range(37)], [9, 8, 7], [100, 3, 4, 3, 4], [5]]
# head -> (target, folder of the head beside it; None: "mtp", in the target's own folder)
HEADS: dict[str, tuple[str, Callable[[Path, Any], Path]]] = {
    "eagle3": ("llama", lambda p, t: eagle3_folder(p, eagle3_config())),
    "eagle3 normed residual": ("llama", lambda p, t: eagle3_folder(p, eagle3_config(norm_before_residual=True), int8=True)),
    "eagle3 all flags": ("qwen3", lambda p, t: eagle3_folder(p, eagle3_config(
        model_type="qwen3", num_hidden_layers=2, norm_before_fc=True, norm_output=True, own_embedding=True))),
    "eagle3 whole vocabulary": ("llama-tied", lambda p, t: eagle3_folder(p, eagle3_config(draft_vocab_size=320))),
    "specforge": ("llama", lambda p, t: specforge_folder(p, eagle3_config(taps=(1, 2)))),
    "mtp speculators": ("qwen3", lambda p, t: mtp_folder(p, t, "speculators")),
    "medusa": ("llama", lambda p, t: medusa_folder(p, t, "repository", blocks=2)),
    "medusa version 2": ("llama-tied", lambda p, t: medusa_folder(p, t, "version 2")),
    "medusa truncated": ("qwen2", lambda p, t: medusa_folder(p, t, "truncated")),
}  # fmt: skip
OWN = {
    "mtp qwen": ("qwen3", "qwen"),
    "mtp mimo": ("qwen2", "mimo"),
    "mtp deepseek": ("llama-tied", "deepseek"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str | Path]]:
    """name -> (target, what LLM's draft is)."""
    root = tmp_path_factory.mktemp("heads")
    known: dict[str, tuple[Path, str | Path]] = {}

    def make(name: str) -> tuple[Path, str | Path]:
        if name not in known:
            architecture, how = (HEADS | OWN)[name]
            target = tiny_checkpoint(architecture, root / name / "target")
            config = open_checkpoint(target).config
            if callable(how):
                known[name] = target, how(root / name / "head", config)
            else:
                module = mtp_folder(root / name / "module", config, how)
                tensors = load_file(module / "model.safetensors")
                del tensors["model.norm.weight"]
                save_file(
                    {**load_file(target / "model.safetensors"), **tensors}, target / "model.safetensors"
                )
                raw = json.loads((target / "config.json").read_text())
                (target / "config.json").write_text(json.dumps({**raw, "num_nextn_predict_layers": 1}))
                known[name] = target, "mtp"
        return known[name]

    return make


def sampling(**changes: Any) -> list[SamplingParams]:
    return [
        SamplingParams(max_tokens=20, temperature=t, seed=i, logprobs=2, ignore_eos=True, **changes)
        for i, t in enumerate((0.0, 0.7, 1.0, 1.0))
    ]


def answers(llm: LLM, prompts: list[list[int]], params: list[SamplingParams]) -> list[tuple[Any, ...]]:
    return [(c.token_ids, c.logprobs, c.top_logprobs) for c in llm.generate(prompts, params)]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", [*HEADS, *OWN])
def test_answers_are_those_of_plain_decoding(
    name: str, executor: str, made: Callable[[str], tuple[Path, str | Path]]
) -> None:
    target, draft = made(name)
    options = {**OPTIONS, "executor": executor}
    plain, drafted = (
        LLM(target, speculation="off", **options),
        LLM(target, speculation="always", draft=draft, **options),
    )
    steps = Steps()
    sizes = (1, 4) if executor == "spec" else (1, 2, 3, 4)
    with drafted.observed_by(steps):
        for size in sizes:
            prompts, params = PROMPTS[-size:], sampling()[-size:]
            got, want = answers(drafted, prompts, params), answers(plain, prompts, params)
            if executor == "spec":  # its logprobs round by the number of rows
                got, want = ([tokens for tokens, *_ in every] for every in (got, want))
            assert got == want
    assert drafted.free_pages == drafted.num_pages
    assert {record.failure for record in steps.records} == {""}
    assert sum(record.drafted for record in steps.records) > 2 * len(steps.records)
    assert any(len(record.path) > 1 for record in steps.records)  # something was accepted
    assert drafted.memory_bytes()["drafts"] > 0


@pytest.mark.parametrize(
    "policy",
    [
        BestFirstPolicy(Drawn.DETERMINISTIC, max_depth=9, beam=3), StaticPolicy(parse_shape("3-2-1-1")),
        BestFirstPolicy(max_depth=1, beam=1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["eagle3", "medusa"])
def test_other_policies(name: str, policy: Any, made: Callable[[str], tuple[Path, str | Path]]) -> None:
    target, draft = made(name)
    params = sampling()
    plain = LLM(target, speculation="off", **OPTIONS)
    drafted = LLM(target, speculation="always", draft=draft, draft_policy=policy, **OPTIONS)
    assert answers(drafted, PROMPTS, params) == answers(plain, PROMPTS, params)


@pytest.mark.parametrize(
    ("verifier", "policy"),
    [
        ("traversal", GrownHybridPolicy((2, 3))),
        ("target", BestFirstPolicy(Drawn.DETERMINISTIC)),
        ("block", None),
    ],
)
@pytest.mark.parametrize("name", ["eagle3", "eagle3 whole vocabulary", "medusa truncated", "mtp speculators"])
def test_verifiers_with_fresh_randomness(
    name: str, verifier: str, policy: Any, made: Callable[[str], tuple[Path, str | Path]]
) -> None:
    """They run on heads with a vocabulary of their own, nothing is refused, and greedy answers are plain decoding's."""
    target, draft = made(name)
    policy = policy or StaticPolicy(parse_shape("chain2"), Drawn.IID)
    llm = LLM(target, speculation="always", draft=draft, draft_policy=policy, verifier=verifier, **OPTIONS)
    plain = LLM(target, speculation="off", **OPTIONS)
    greedy = SamplingParams(max_tokens=12, ignore_eos=True)
    steps = Steps()
    with llm.observed_by(steps):
        llm.generate(PROMPTS, sampling())
        assert [c.token_ids for c in llm.generate(PROMPTS, greedy)] == [
            c.token_ids for c in plain.generate(PROMPTS, greedy)
        ]
    assert {record.failure for record in steps.records} == {""}
    assert sum(record.drafted for record in steps.records) > len(steps.records)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("name", ["eagle3", "medusa"])
def test_a_head_of_nonsense_changes_nothing(
    name: str, value: float, made: Callable[[str], tuple[Path, str | Path]], tmp_path: Path
) -> None:
    target, good = made(name)
    tensors = load_file(Path(good) / "model.safetensors")
    key = "lm_head.weight" if name == "eagle3" else "1.2.weight"
    tensors[key][::2] = value
    tensors[key.replace("lm_head", "norm")][0] *= value
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((Path(good) / "config.json").read_text())
    plain = LLM(target, speculation="off", **OPTIONS)
    for policy in (None, GrownHybridPolicy((2, 2))):
        verifier = "shared_noise" if policy is None else "traversal"
        llm = LLM(
            target, speculation="always", draft=tmp_path, draft_policy=policy, verifier=verifier, **OPTIONS
        )
        got, want = (answers(x, PROMPTS, sampling()) for x in (llm, plain))
        assert got[0] == want[0]  # the greedy one
        assert policy is not None or got == want


def reference_logits(draft: Path, target: LLM, text: list[int], drafted: list[int]) -> Tensor:
    """What the plain head says, in float64: [1 + len(drafted), V], -inf for tokens that it does not have.

    text: committed tokens and the root, drafted: the chain below it.
    """
    kind = head_kind(draft)
    config = target.config
    stored = lambda name: target.checkpoint.weight(name)
    embed = stored("embed").double()  # type: ignore[union-attr]
    head = embed if config.tie_embeddings else stored("lm_head").double()  # type: ignore[union-attr]
    if kind == "eagle3":
        checkpoint = Eagle3Checkpoint(draft)
        weights = {name: checkpoint.weight(name).double() for name in checkpoint.names()}  # type: ignore[union-attr]
        features = target.hidden_states(text[:-1], checkpoint.config.taps_of(config)).double()
        table = weights.get("embed", embed)
        logits = eagle3(weights, checkpoint.config, features, text[1:], drafted, table)
        whole = torch.full((len(logits), config.vocab_size), -torch.inf, dtype=torch.float64)
        whole[:, checkpoint.target_ids] = logits
        return whole
    features = target.hidden_states(text[:-1], [config.num_layers]).double()
    norm = stored("final_norm").double()  # type: ignore[union-attr]
    if kind == "mtp":
        module = MtpCheckpoint(draft, config)
        weights = {name: module.weight(name).double() for name in module.names()} | {"final_norm": norm}
        hidden = mtp(weights, module.layer, module.form, features, text[1:], drafted, embed)
        assert config.tie_embeddings or not torch.equal(embed, head)
        return hidden
    heads = MedusaCheckpoint(draft, config)
    weights = {name: heads.weight(name).double() for name in heads.names()}
    x = rms(features[-1:], norm, config.rms_eps)
    return torch.cat([medusa(weights, heads.config.num_blocks, i, x) for i in range(1 + len(drafted))])


@pytest.mark.parametrize(
    "name", ["eagle3", "eagle3 all flags", "eagle3 float normed residual", "mtp tied", "medusa"]
)
def test_trees_are_what_the_plain_head_says(
    name: str,
    made: Callable[[str], tuple[Path, str | Path]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Features, tokens and positions meet as they should: at every step the chain is the plain head's own greedy one."""
    monkeypatch.setattr(loading, "compact", lambda weight, format: weight)
    if name == "mtp tied":
        target: Path = tiny_checkpoint("qwen3", tmp_path / "t", tie_word_embeddings=True)
        draft: str | Path = mtp_folder(tmp_path / "h", open_checkpoint(target).config, "speculators")
    elif name == "eagle3 float normed residual":
        target = tiny_checkpoint("llama", tmp_path / "t")
        draft = eagle3_folder(tmp_path / "h", eagle3_config(norm_before_residual=True))
    else:
        target, draft = made(name)
    chain = StaticPolicy(parse_shape("chain3"), Drawn.DETERMINISTIC)
    llm = LLM(target, speculation="always", draft=draft, draft_policy=chain, **OPTIONS)
    steps = Steps()
    with llm.observed_by(steps):
        (answer,) = llm.generate(
            [PROMPTS[0]], SamplingParams(max_tokens=16, seed=3, temperature=1.0, ignore_eos=True)
        )
    text = PROMPTS[0] + answer.token_ids
    checked = 0
    for record in steps.records:
        tokens = record.tokens.tolist()
        assert tokens[0] == text[record.root_position]
        so_far = text[: record.root_position + 1]
        logits = reference_logits(Path(draft), llm, so_far, tokens[1:-1])
        for row, token in zip(logits, tokens[1:], strict=False):
            assert row[token] >= row.max() - 1e-3
            checked += 1
    assert checked >= 20


def test_heads_that_are_not_of_the_target_are_refused(
    made: Callable[[str], tuple[Path, str | Path]], tmp_path: Path
) -> None:
    target, _ = made("eagle3")
    wrong = {
        "num_layers=2": eagle3_folder(tmp_path / "a", eagle3_config(taps=(0, 1, 7))),
        "the target's 320": eagle3_folder(tmp_path / "b", eagle3_config(vocab_size=300)),
        "the target's 64": eagle3_folder(tmp_path / "c", replace(eagle3_config(own_embedding=True), target_hidden_size=32)),
    }  # fmt: skip
    for words, draft in wrong.items():
        with pytest.raises(ValueError, match=words):
            LLM(target, draft=draft, **OPTIONS)
    with pytest.raises(ValueError, match="tensors must be one of mtp.fc.weight"):
        LLM(target, draft="mtp", **OPTIONS)
    with pytest.raises(ValueError, match="draft must be a head's folder where none comes with the package"):
        LLM(target, draft="eagle3", **OPTIONS)


def test_kinds_of_folders(tmp_path: Path, made: Callable[[str], tuple[Path, str | Path]]) -> None:
    target, head = made("eagle3")
    assert head_kind(target) is None
    assert head_kind(tmp_path) is None
    assert head_kind(Path(head)) == "eagle3"
    assert head_kind(Path(made("specforge")[1])) == "eagle3"
    assert head_kind(Path(made("mtp speculators")[1])) == "mtp"
    assert head_kind(Path(made("medusa truncated")[1])) == "medusa"
    (tmp_path / "config.json").write_text(json.dumps({"speculators_model_type": "dflash"}))
    with pytest.raises(ValueError, match="speculators_model_type must be eagle3"):
        head_kind(tmp_path)


def test_weights_are_quantised_where_they_can_be() -> None:
    matrix, odd, norm = torch.randn(4, 64), torch.randn(4, 33), torch.randn(64)
    for format in ("q8_0", "q4_0"):
        weight = compact(matrix, format)
        assert isinstance(weight, QuantTensor)
        assert weight.format == format
        assert compact(odd, format) is odd
        assert compact(norm, format) is norm
    eight = quantize(matrix, "q8_0")
    assert compact(eight, "q8_0") is eight
    assert compact(eight, "stored") is eight
    four = compact(eight, "q4_0")
    assert isinstance(four, QuantTensor)
    assert four.format == "q4_0"


def test_policies_are_cut_to_the_heads_there_are() -> None:
    assert limited(BestFirstPolicy(max_depth=6), 3) == BestFirstPolicy(max_depth=3)
    assert limited(GrownHybridPolicy((2, 3, 4)), 2) == GrownHybridPolicy((2, 3))
    assert limited(StaticPolicy(parse_shape("2-2-1")), 2) == StaticPolicy(parse_shape("2-2"))
