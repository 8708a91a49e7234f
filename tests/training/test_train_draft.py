# SPDX-License-Identifier: Apache-2.0
"""`pyspec train-draft` on a tiny random target: it learns, it is deterministic, it resumes, and what it writes is a head."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_checkpoint

from pyspec import SamplingParams
from pyspec.cli import app
from pyspec.drafts.heads.eagle3_checkpoint import Eagle3Checkpoint
from pyspec.drafts.heads.shipped import shipped
from pyspec.engine import LLM
from pyspec.training import run as run_module
from pyspec.training.options import TrainOptions
from pyspec.training.run import STATE, TrainJob, train_draft
from pyspec.training.trainer import Trainer

OPTIONS = TrainOptions(
    intermediate_size=64, draft_vocab_size=48, taps=(0, 1, 2), steps=6, batch_rows=64, max_length=40, unroll=3,
    dtype="f32", held_out=4, validate_every=2, save_every=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    path = tiny_checkpoint("llama", tmp_path_factory.mktemp("model") / "llama")
    return LLM(path, speculation="off", max_batch=4, max_context=64, max_nodes=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, llm: LLM) -> Path:
    """What the target itself answers, greedily, to 24 prompts of few tokens: text that repeats soon."""
    prompts = [[256, 97 + i % 3, 98 + i % 5, 99] for i in range(24)]
    lines = []
    for prompt in prompts:
        answer = llm.generate(prompt, SamplingParams(max_tokens=24, ignore_eos=True))[0]
        lines.append(json.dumps({"prompt": prompt, "answer": answer.token_ids}))
    path = tmp_path_factory.mktemp("data") / "text.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def job(out: Path, data: Path, *, resume: bool = False, **changes: object) -> TrainJob:
    options = TrainOptions(**{**OPTIONS.__dict__, **changes})  # type: ignore[arg-type]
    return TrainJob(out, (data,), resume=resume, progress=False, options=options)


def test_loss_falls_and_drafts_are_accepted(llm: LLM, data: Path, tmp_path: Path) -> None:
    report = train_draft(llm, job(tmp_path, data, steps=40, validate_every=10))
    with (tmp_path / "log.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "validation"]
    assert [int(row["step"]) for row in rows] == [10, 20, 30, 40]
    for k in (1, 2, 3):
        assert float(rows[-1][f"loss_{k}"]) < float(rows[0][f"loss_{k}"])
    assert float(rows[-1]["accept_1"]) > 0.2  # by chance it would be 0.02
    assert report["validation"]["mean_accepted_length"] > float(rows[0]["mean_accepted_length"])
    assert 0.5 < report["coverage"] <= 1
    assert json.loads((tmp_path / "training.json").read_text())["options"]["steps"] == 40


def test_twice_the_same_is_the_same_bits(llm: LLM, data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_draft(llm, job(tmp_path / name, data, dtype="bf16"))
    first, second = (load_file(tmp_path / name / "work" / STATE) for name in ("a", "b"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    train_draft(llm, job(tmp_path / "c", data, dtype="bf16", seed=1))
    assert not torch.equal(load_file(tmp_path / "c" / "work" / STATE)["weight.fc"], first["weight.fc"])


def test_resumed_training_is_the_uninterrupted_one(
    llm: LLM, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_draft(llm, job(tmp_path / "whole", data))
    step = Trainer.train_step

    def stopped(trainer: Trainer) -> object:
        if trainer.step == 5:  # behind the checkpoint of step 4: step 5 is done again
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_draft(llm, job(tmp_path / "parts", data))
    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(ValueError, match="out must hold no training unless it is resumed"):
        train_draft(llm, job(tmp_path / "parts", data))
    with pytest.raises(ValueError, match="must be of the same options, model and data"):
        train_draft(llm, job(tmp_path / "parts", data, resume=True, learning_rate=0.1))
    train_draft(llm, job(tmp_path / "parts", data, resume=True))
    whole, parts = (load_file(tmp_path / name / "work" / STATE) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logs = [(tmp_path / name / "log.csv").read_text().splitlines() for name in ("whole", "parts")]
    without_seconds = [[[*line.split(",")[:2], *line.split(",")[3:]] for line in log] for log in logs]
    assert without_seconds[0] == without_seconds[1]


@pytest.mark.parametrize("int8", [True, False])
def test_the_folder_is_a_head(llm: LLM, data: Path, tmp_path: Path, int8: bool) -> None:
    out = tmp_path / "head"
    training = TrainJob(out, (data,), int8=int8, progress=False, options=OPTIONS, name="some/model")
    train_draft(llm, training)
    head = Eagle3Checkpoint(out)
    assert head.config.draft_vocab_size == 48
    assert head.config.taps_of(llm.config) == (0, 1, 2)
    assert head.target_ids.tolist() == sorted(head.target_ids.tolist())
    described = json.loads((out / "config.json").read_text())
    assert described["speculators_model_type"] == "eagle3"
    assert described["speculators_config"]["verifier"]["name_or_path"] == "some/model"
    state = load_file(out / "work" / STATE)
    if not int8:
        stored = head.weight("fc")
        assert isinstance(stored, torch.Tensor)
        assert torch.equal(stored, state["weight.fc"].bfloat16())
    assert shipped(llm.checkpoint, tmp_path) == out


def test_a_head_belongs_to_its_target(llm: LLM, data: Path, tmp_path: Path) -> None:
    train_draft(llm, job(tmp_path / "head", data, steps=1))
    other = LLM(
        tiny_checkpoint("llama-tied", tmp_path / "model"), speculation="off", max_batch=1, max_nodes=1
    )
    assert shipped(other.checkpoint, tmp_path) is None
    assert shipped(llm.checkpoint, tmp_path) == tmp_path / "head"


def test_damaged_features_and_checkpoints(llm: LLM, data: Path, tmp_path: Path) -> None:
    train_draft(llm, job(tmp_path, data))
    before = load_file(tmp_path / "work" / STATE)
    features = next((tmp_path / "work" / "features").iterdir())
    features.write_bytes(features.read_bytes()[:100])  # made anew
    train_draft(llm, job(tmp_path, data, resume=True))
    assert load_file(features)["states"].dtype == torch.bfloat16
    for content in ({"weight.fc": torch.zeros(2)}, before | {"draft_ids": torch.arange(48)}):
        save_file(content, tmp_path / "work" / STATE)
        with pytest.raises(ValueError, match="must be"):
            train_draft(llm, job(tmp_path, data, resume=True))


def test_prompts_without_answers_are_answered_and_kept(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"abc{i}"}) + "\n" for i in range(5)), encoding="utf-8")
    monkeypatch.setattr(run_module, "ANSWER_TOKENS", 16)
    train_draft(llm, job(tmp_path / "out", path, steps=1, held_out=2))
    shard = tmp_path / "out" / "work" / "answers" / "shard-00000.jsonl"
    first = shard.read_bytes()
    assert len(first.splitlines()) == 5
    shard.unlink()
    (tmp_path / "out" / "work" / STATE).unlink()
    train_draft(llm, job(tmp_path / "out", path, steps=1, held_out=2))
    assert shard.read_bytes() == first


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 must be JSON"),
        ("[1]", "line 2 must be an object with a prompt"),
        ('{"prompt": [1, 2], "answer": []}', "answer must be a text or a list with at least one token id"),
        ('{"prompt": [1, 2]}', "answer must be a text or a list"),
        ('{"prompt": [1, 320], "answer": [1]}', r"prompt must have token ids in \[0, 320\), got 320"),
        ('{"prompt": [1, true], "answer": [1]}', "prompt must have token ids"),
        ('{"prompt": [1], "answer": [-1]}', "answer must have token ids"),
        ('{"prompt": " "}', "must have texts that are not empty"),
        ('{"prompt": "a", "answer": [1]}', "must have texts"),
        ('{"prompt": "a", "raw": 1}', "raw must be true or false"),
    ],
)
def test_malformed_data_is_refused(llm: LLM, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": [1, 2], "answer": [3, 4, 5]}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        train_draft(llm, job(tmp_path / "out", path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be an integer"),
        ({"unroll": True}, "unroll must be an integer"),
        ({"learning_rate": float("nan")}, "learning_rate must be in"),
        ({"dtype": "f16"}, r"dtype must be bf16\|f32"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"held_out": 1}, "held_out must be an integer"),
    ],
)
def test_bad_options_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainOptions(**changes)  # type: ignore[arg-type]


def test_too_little_data_is_refused(llm: LLM, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="samples must be at least held_out=100"):
        train_draft(llm, job(tmp_path, data, held_out=100))
    with pytest.raises(ValueError, match="data must be given"):
        train_draft(llm, TrainJob(tmp_path, progress=False, options=OPTIONS))


def test_command(llm: LLM, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run: Callable[..., int] = lambda *more: app.run(
        ["train-draft", "--model", str(llm.checkpoint.path), "--data", str(data), "--context", "64", "--batch", "4",
         "--steps", "2", "--draft-vocab-size", "48", "--intermediate-size", "64", "--held-out", "4", "--quiet", *more]
    )  # fmt: skip
    assert run("--taps", "0,1,2", "--out", str(tmp_path / "head")) == 0
    assert "mean accepted length" in capsys.readouterr().out
    assert Eagle3Checkpoint(tmp_path / "head").config.num_taps == 3
    assert run("--taps", "0,1,2", "--out", str(tmp_path / "head")) == 1
    assert "unless it is resumed" in capsys.readouterr().err
    assert run("--taps", "a,b", "--out", str(tmp_path / "x")) == 2
    assert run("--out", str(tmp_path / "x")) == 1  # two layers have no 2, 1 and -1
    assert "taps" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run("--taps", "0,1,2", "--out", str(tmp_path / "file" / "head")) == 1
    assert capsys.readouterr().err.startswith("error: ")
