# SPDX-License-Identifier: Apache-2.0
"""`pyspec train-draft` as a function: text, features, vocabulary, training, and the head in its folder.

In DIR: config.json and model.safetensors (speculators' format), target.json (whose head it is), training.json (how it was made, what it
reached), log.csv and curves.png. DIR/work has what only a resumed run needs: text, features, the checkpoint.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from pyspec.drafts.heads.eagle3_checkpoint import write_eagle3
from pyspec.drafts.heads.shipped import TARGET_FILE, target_fingerprint
from pyspec.training.data import Sample, Written, read_data
from pyspec.training.features import FeatureStore, Teacher
from pyspec.training.generate import SHARD_PROMPTS, ChatFrame, generate
from pyspec.training.head import head_config
from pyspec.training.log import Log, draw_curves
from pyspec.training.options import TrainOptions
from pyspec.training.prompts import Ask, ask
from pyspec.training.trainer import Tally, Trainer, run_key
from pyspec.training.vocabulary import coverage, draft_vocabulary

if TYPE_CHECKING:
    from pyspec.engine.llm import LLM

STATE = "state.safetensors"
ANSWER_TOKENS = 256  # longest answer to a given prompt


@dataclass(frozen=True)
class TrainJob:
    """What to train on and where to: `data` files or folders (see data.py), and self_generate answer tokens that the model writes by itself.

    name is what the head's config.json calls the target. resume goes on from DIR/work; without it DIR must hold no training.
    int8 stores matrices as int8 with a scale per 32 values, half the size of bf16.
    """

    out: Path
    data: tuple[Path, ...] = ()
    self_generate: int = 0
    name: str = ""
    resume: bool = False
    int8: bool = True
    progress: bool = True
    options: TrainOptions = field(default_factory=TrainOptions)


def train_draft(llm: LLM, job: TrainJob) -> dict[str, Any]:
    """Train a head for `llm` and write it to job.out; returns what training.json says.

    ValueError for data, options or a model that cannot be used, OSError where the folder cannot be written.
    """
    options, work = job.options, job.out / "work"
    if not (job.data or job.self_generate):
        raise ValueError("train-draft: data must be given, or self_generate tokens, got neither")
    if (work / STATE).exists() and not job.resume:
        raise ValueError(f"train-draft: out must hold no training unless it is resumed, got {job.out}")
    layers = llm.config.num_layers
    taps = (2, layers // 2, layers - 3) if options.taps is None else options.taps
    config = head_config(llm.config, taps, options.intermediate_size, options.draft_vocab_size)
    work.mkdir(parents=True, exist_ok=True)
    target = target_fingerprint(llm.checkpoint)
    samples = _samples(llm, job, target)
    teacher = Teacher(llm.checkpoint)
    store = FeatureStore(
        work / "features",
        samples,
        taps,
        llm.config.hidden_size,
        min(options.max_length, llm.max_context),
        target,
    )
    with _bar(job, "features", sum(map(store.length, range(len(store)))), "tokens") as bar:
        store.compute(llm, bar.update)
    trainer = Trainer(config, options, store, teacher, _vocabulary(llm, store, options))
    state, key = work / STATE, run_key(options, store.digest())
    if job.resume and state.exists():
        trainer.load(state, key)
    log = Log(job.out / "log.csv", options.unroll, trainer.step)
    seconds = _train(trainer, log, state, key, job)
    report = _report(llm, job, trainer, store, samples, log.seconds + seconds)
    write_eagle3(
        job.out, config, trainer.weights, trainer.draft_ids, verifier=job.name or llm.checkpoint.path.stem,
        steps=options.unroll, int8=job.int8,
    )  # fmt: skip
    _write_json(job.out / TARGET_FILE, {"name": job.name or llm.checkpoint.path.stem, "fingerprint": target})
    _write_json(job.out / "training.json", report)
    report["curves"] = draw_curves(job.out / "log.csv", job.out / "curves.png")
    return report


def _samples(llm: LLM, job: TrainJob, target: str) -> list[Sample]:
    """Everything to learn from: what was given, what the model answered to given prompts, what it wrote by itself."""
    found: list[Sample] = []
    asked: list[Ask] = []
    frame = None
    for line in (line for path in job.data for line in read_data(path, llm.config.vocab_size)):
        if isinstance(line, Sample):
            found.append(line)
            continue
        form = "raw" if line.raw or llm.checkpoint.chat_template is None else "chat"
        if line.answer is None:
            # Every second answer is greedy, as in prompts.py.
            asked.append(
                Ask(
                    "data",
                    line.prompt,
                    form,
                    float(len(asked) % 2),
                    ANSWER_TOKENS,
                    job.options.seed + len(asked),
                )
            )
        else:
            frame = frame or (ChatFrame(llm) if form == "chat" else None)
            found.append(_encoded(llm, frame if form == "chat" else None, line))
    folder, seed = job.out / "work", job.options.seed
    if asked:
        parts = [asked[i : i + SHARD_PROMPTS] for i in range(0, len(asked), SHARD_PROMPTS)]
        with _bar(job, "answers", len(asked) * 128, "tokens") as bar:
            key = f"model {target[:16]}, {len(asked)} prompts, seed {seed}"
            found += generate(
                llm, folder / "answers", lambda i: parts[i] if i < len(parts) else [], None, key, bar.update
            )
    if job.self_generate:
        own = lambda i: [ask(seed, i * SHARD_PROMPTS + k) for k in range(SHARD_PROMPTS)]
        with _bar(job, "text", job.self_generate, "tokens") as bar:
            key = f"model {target[:16]}, seed {seed}"
            found += generate(llm, folder / "text", own, job.self_generate, key, bar.update)
    return found


def _encoded(llm: LLM, frame: ChatFrame | None, line: Written) -> Sample:
    prompt = llm.tokenizer.encode(line.prompt) if frame is None else frame.prompt(line.prompt)
    return Sample("data", prompt, llm.tokenizer.encode(line.answer or "", add_special=False))


def _vocabulary(llm: LLM, store: FeatureStore, options: TrainOptions) -> torch.Tensor:
    answers = (store.answer(i) for i in range(len(store)) if i % options.held_out != options.held_out - 1)
    return draft_vocabulary(answers, options.draft_vocab_size, llm.config.vocab_size, llm.config.eos_ids)


def _train(trainer: Trainer, log: Log, state: Path, key: str, job: TrainJob) -> float:
    """Run the steps that are left; returns their seconds."""
    options, started, since = job.options, time.perf_counter(), Tally.zero(job.options.unroll)
    with _bar(job, "training", options.steps, "steps", trainer.step) as bar:
        while trainer.step < options.steps:
            since.add(trainer.train_step())
            bar.update(1)
            bar.set_postfix(
                loss=f"{since.mean_loss()[0]:.3f}", accepted=f"{since.mean_accepted_length():.2f}"
            )
            last = trainer.step == options.steps
            if trainer.step % options.validate_every == 0 or last:
                held_out = trainer.validate(trainer.validation)
                for split, tally in (("training", since), ("validation", held_out)):
                    rate = options.learning_rate_at(trainer.step - 1)
                    log.write(trainer.step, split, time.perf_counter() - started, rate, tally)
                since = Tally.zero(options.unroll)
            if trainer.step % options.save_every == 0 or last:
                trainer.save(state, key)
    return time.perf_counter() - started


def _report(
    llm: LLM, job: TrainJob, trainer: Trainer, store: FeatureStore, samples: Sequence[Sample], seconds: float
) -> dict[str, Any]:
    reached = lambda indices: _figures(trainer.validate(indices))
    kinds = sorted({store.kind(i) for i in trainer.validation})
    by_kind = {kind: reached([i for i in trainer.validation if store.kind(i) == kind]) for kind in kinds}
    return {
        "options": job.options.described(),
        "target": job.name or llm.checkpoint.path.stem,
        "samples": len(store),
        "prompt_tokens": sum(len(sample.prompt) for sample in samples),
        "answer_tokens": sum(len(sample.answer) for sample in samples),
        "data_sha256": store.digest(),
        "coverage": round(coverage((store.answer(i) for i in trainer.validation), trainer.draft_ids), 4),
        "parameters": sum(w.numel() for w in trainer.weights.values()),
        "steps": trainer.step,
        "training_seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "validation": reached(trainer.validation),
        "validation_by_kind": by_kind,
    }


def _figures(tally: Tally) -> dict[str, Any]:
    return {
        "rows": tally.rows[0],
        "accepted_up_to_draft": [round(share, 4) for share in tally.acceptance()],
        "mean_accepted_length": round(tally.mean_accepted_length(), 4),
    }


@contextmanager
def _bar(job: TrainJob, what: str, total: int, unit: str, initial: int = 0) -> Iterator[tqdm]:
    """A progress bar on standard error."""
    with tqdm(
        total=total, desc=what, unit=f" {unit}", initial=initial, disable=not job.progress, mininterval=0.5
    ) as bar:
        yield bar


def _write_json(path: Path, value: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)
