# SPDX-License-Identifier: Apache-2.0
"""On-policy text: the target answers prompts, and the token ids are kept as JSON lines, one shard of prompts a file.

A shard is complete or absent (it is written beside and renamed), so generation goes on where it was stopped. Answers do not depend
on the batch, so a shard depends on the model, the seed and its number alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pyspec.models.chat import chat_prompt
from pyspec.training.data import Sample, read_shard
from pyspec.training.prompts import Ask

if TYPE_CHECKING:
    from pyspec.engine.llm import LLM

SHARD_PROMPTS = 256
MAX_TURN = 192  # tokens of a user's turn that the model writes
_MARK = "pyspec-user-turn"


class ChatFrame:
    """What the model's chat template puts around one user's message: rendered once, as each rendering is a process."""

    def __init__(self, llm: LLM) -> None:
        rendered = chat_prompt(llm.checkpoint, [{"role": "user", "content": _MARK}])
        if rendered.count(_MARK) != 1:
            raise ValueError(f"generate: chat template must print the user's message once, got {rendered!r}")
        self._llm, (self._before, self._after) = llm, rendered.split(_MARK)

    def message(self, text: str) -> list[int]:
        """Token ids of a user's message that goes on behind this text."""
        return self._llm.tokenizer.encode(self._before + text, add_special=False)

    def prompt(self, text: str) -> list[int]:
        """Token ids of the conversation that begins with this message."""
        return self._llm.tokenizer.encode(self._before + text + self._after, add_special=False)


def generate(
    llm: LLM,
    folder: Path,
    asks: Callable[[int], Sequence[Ask]],
    tokens: int | None,
    key: str,
    write: Callable[[int], object],
) -> list[Sample]:
    """The samples of the shards in `folder`, made where they are missing: asks(0), asks(1), ... answered, up to `tokens` answer tokens.

    asks(i) are the prompts of shard i, none behind the last. write(n) is called after each shard with its answer tokens. A model without
    a chat template continues "raw" texts alone. `key` says what the shards depend on: ValueError if the folder has those of another key.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder / "made.json", key)
    frame = ChatFrame(llm) if llm.checkpoint.chat_template is not None else None
    samples: list[Sample] = []
    shard, done = 0, 0
    while (tokens is None or done < tokens) and (wanted := asks(shard)):
        path = folder / f"shard-{shard:05d}.jsonl"
        if not path.exists():
            _save(path, answer(llm, frame, wanted))
        made = list(read_shard(path, llm.config.vocab_size))
        count = sum(len(sample.answer) for sample in made)
        if tokens is not None and not count:
            raise ValueError(f"generate: model must answer prompts of shard {shard}, got no token")
        samples, done, shard = samples + made, done + count, shard + 1
        write(count)
    return samples


def _claim(path: Path, key: str) -> None:
    """Write down what the folder's shards are made of, or check that it is the same."""
    if not path.exists():
        path.write_text(json.dumps({"key": key}) + "\n", encoding="utf-8")
    stored = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(stored, dict) or stored.get("key") != key:
        raise ValueError(f"generate: {path.parent} must hold answers of {key}, got those of {stored}")


def answer(llm: LLM, frame: ChatFrame | None, asks: Sequence[Ask]) -> list[Sample]:
    """The model's answers to those prompts that it can answer within its context, in order."""
    from pyspec.engine.sampling_params import SamplingParams

    if frame is not None:
        asks = _finished(llm, frame, asks)
    ready, params, kinds = [], [], []
    for one in asks:
        if one.form == "open" or (frame is None and one.form != "raw"):
            continue
        raw = frame is None or one.form == "raw"
        prompt = llm.tokenizer.encode(one.text) if frame is None or raw else frame.prompt(one.text)
        if prompt and len(prompt) + one.max_tokens <= llm.max_context:
            ready.append(prompt)
            kinds.append(one.kind)
            params.append(
                SamplingParams(
                    temperature=one.temperature, seed=one.seed, max_tokens=one.max_tokens, speculation="off"
                )
            )
    answers = llm.generate(ready, params) if ready else []
    return [Sample(k, p, a.token_ids) for k, p, a in zip(kinds, ready, answers, strict=True)]


def _finished(llm: LLM, frame: ChatFrame, asks: Sequence[Ask]) -> list[Ask]:
    """The same prompts, the open messages finished by the model at temperature 1; those that do not end stay open."""
    from pyspec.engine.sampling_params import SamplingParams

    opened = [i for i, one in enumerate(asks) if one.form == "open"]
    limit = min(MAX_TURN, llm.max_context // 2)
    params = [
        SamplingParams(
            temperature=1.0, seed=asks[i].seed, stream_index=1, max_tokens=limit, speculation="off"
        )
        for i in opened
    ]
    turns = llm.generate([frame.message(asks[i].text) for i in opened], params) if opened else []
    filled = list(asks)
    for i, turn in zip(opened, turns, strict=True):
        text = asks[i].text + turn.text.rstrip()
        if turn.finish_reason == "eos" and text.strip():
            filled[i] = replace(asks[i], text=text, form="chat")
    return filled


def _save(path: Path, samples: Sequence[Sample]) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for one in samples:
            file.write(json.dumps({"kind": one.kind, "prompt": one.prompt, "answer": one.answer}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
