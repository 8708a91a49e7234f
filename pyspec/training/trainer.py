# SPDX-License-Identifier: Apache-2.0
"""The training loop: batches of texts, the distillation loss of every draft step, AdamW, validation, checkpoints.

The loss of a row at draft step k is the cross-entropy of the head's law with the target's (temperature 1), both over the draft vocabulary:
softmax(target's logits there) against softmax(head's). Rows whose token of the text is outside the draft vocabulary are left out: so a
row counts, on average, by the probability that the draft vocabulary has there, and nothing is learnt where no draft can be right.

With the same options, data and number of threads, weights are the same bit for bit, also when the run was stopped and resumed:
the order of texts is a function of (seed, epoch), and a checkpoint holds weights, moments and the step in one file.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from pyspec.drafts.heads.eagle3_config import Eagle3Config, head_shapes
from pyspec.training.features import FeatureStore, Teacher, Text
from pyspec.training.head import Head, Texts, initial_weights
from pyspec.training.options import TrainOptions

BETAS, EPSILON = (0.9, 0.95), 1e-8
EXAMPLES = 64  # samples that the head's first norms are measured on


@dataclass
class Tally:
    """By draft step: rows, those whose token a draft can name, the loss of these, and how many chains were right so far."""

    rows: list[int]
    known: list[int]
    loss: list[float]
    right: list[int]

    @classmethod
    def zero(cls, steps: int) -> Tally:
        return cls([0] * steps, [0] * steps, [0.0] * steps, [0] * steps)

    def add(self, other: Tally) -> None:
        for mine, theirs in ((self.rows, other.rows), (self.known, other.known), (self.right, other.right)):
            mine[:] = [x + y for x, y in zip(mine, theirs, strict=True)]
        self.loss = [x + y for x, y in zip(self.loss, other.loss, strict=True)]

    def acceptance(self) -> list[float]:
        """Share of the chains whose drafts up to this step were all right, by draft step."""
        return [right / rows if rows else 0.0 for right, rows in zip(self.right, self.rows, strict=True)]

    def mean_loss(self) -> list[float]:
        """Mean loss of a row whose token a draft can name, by draft step."""
        return [loss / known if known else 0.0 for loss, known in zip(self.loss, self.known, strict=True)]

    def mean_accepted_length(self) -> float:
        """Tokens a step of a greedy chain: the accepted drafts, and the one that the target adds."""
        return 1 + sum(self.acceptance())


class Trainer:
    """A head in training; `step` optimiser steps are done."""

    def __init__(
        self,
        config: Eagle3Config,
        options: TrainOptions,
        store: FeatureStore,
        teacher: Teacher,
        draft_ids: Tensor,
    ) -> None:
        """draft_ids int64 [draft_vocab_size]: target ids of the draft vocabulary, ascending."""
        self.config, self.options, self.draft_ids = config, options, draft_ids
        self._store, self._teacher = store, teacher
        self._dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
        self._draft_head = teacher.head[draft_ids]
        self.training, self.validation = split(len(store), options.held_out)
        examples = torch.cat([text.taps.float() for text in store.texts(self.training[:EXAMPLES])])
        self.weights = initial_weights(config, examples, self._draft_head, teacher.final_norm, options.seed)
        self._first = {name: torch.zeros_like(w, requires_grad=False) for name, w in self.weights.items()}
        self._second = {name: torch.zeros_like(w, requires_grad=False) for name, w in self.weights.items()}
        self.step = 0
        self._epoch = -1
        self._batches: list[list[int]] = []

    def train_step(self) -> Tally:
        """One optimiser step on the next batch; ValueError if the loss is not finite."""
        for weight in self.weights.values():
            weight.grad = None
        loss, tally = self._loss(self._next_batch(), self.options.unroll_at(self.step))
        if not torch.isfinite(loss):
            raise ValueError(f"train-draft: loss must stay finite, got {loss.item()} at step {self.step}")
        loss.backward()
        self._update()
        self.step += 1
        return tally

    @torch.no_grad()
    def validate(self, indices: Sequence[int]) -> Tally:
        """What the head reaches on these samples."""
        total = Tally.zero(self.options.unroll)
        for batch in batches_of(indices, self._rows, self.options.batch_rows):
            total.add(self._loss(batch, self.options.unroll)[1])
        return total

    def _rows(self, index: int) -> int:
        return max(1, len(self._store.answer(index)) - 1)

    def _next_batch(self) -> list[int]:
        """The batch of this step: batches are laid out epoch by epoch, so that a resumed run finds its place."""
        at, epoch = self.step, 0
        while True:
            if epoch != self._epoch:
                order = list(self.training)
                random.Random(f"{self.options.seed} {epoch}").shuffle(order)
                self._batches = list(batches_of(order, self._rows, self.options.batch_rows))
                self._epoch = epoch
            if at < len(self._batches):
                # Neighbours in the files are read together; the order within a batch changes its sums only.
                return sorted(self._batches[at])
            at -= len(self._batches)
            epoch += 1

    def _loss(self, indices: Sequence[int], unroll: int) -> tuple[Tensor, Tally]:
        texts = list(self._store.texts(indices))
        batch = Texts(
            torch.cat([text.taps[:-2].float() for text in texts]),
            self._teacher.embeddings(torch.cat([text.tokens[1:-1] for text in texts])),
            spans_of(texts),
        )
        # Row j is judged by what the target says behind token j + 1, and by the token j + 2 of the text.
        rows = torch.cat([text.tokens[text.start + 1 :] for text in texts])
        last = torch.cat([text.last[text.start : -1] for text in texts])
        with torch.no_grad():
            target = self._teacher.logits(last, self._draft_head).softmax(1)
        known = torch.isin(rows, self.draft_ids)
        head = Head(self.config, self.weights, self._dtype, self.options.max_length)
        tally = Tally.zero(self.options.unroll)
        total, weight_sum = torch.zeros(()), 0.0
        counts = batch.chains(0)
        alive = torch.ones(sum(counts), dtype=torch.bool)
        for step, logits in enumerate(head.unroll(batch, unroll)):
            reach = batch.chains(step)
            inside = torch.cat(
                [offset + step + torch.arange(n) for offset, n in _offsets(batch.chains(0), reach)]
            )
            learnt = known[inside]
            losses = cross_entropy(logits[learnt], target[inside[learnt]], reduction="sum")
            weight = self.options.decay**step
            total, weight_sum = total + weight * losses / max(1, int(learnt.sum())), weight_sum + weight
            alive = torch.cat([part[:n] for part, n in zip(alive.split(counts), reach, strict=True)])
            alive = alive & (self.draft_ids[logits.argmax(1)] == rows[inside])
            counts = reach
            tally.rows[step], tally.right[step] = len(inside), int(alive.sum())
            tally.known[step], tally.loss[step] = int(learnt.sum()), float(losses.detach())
        return total / weight_sum, tally

    @torch.no_grad()
    def _update(self) -> None:
        """AdamW (arXiv 1711.05101), the gradient's norm clipped; norms of the head are not decayed."""
        options, t = self.options, self.step + 1
        gradients = {name: w.grad for name, w in self.weights.items() if w.grad is not None}
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        shrink = torch.clamp(options.clip / (norm + 1e-6), max=1.0)
        rate = options.learning_rate_at(self.step)
        for name, gradient in gradients.items():
            weight, g = self.weights[name], gradient * shrink
            first = self._first[name].lerp_(g, 1 - BETAS[0])
            second = self._second[name].mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            if weight.dim() == 2:
                weight.mul_(1 - rate * options.weight_decay)
            scale = (second / (1 - BETAS[1] ** t)).sqrt_().add_(EPSILON)
            weight.addcdiv_(first, scale, value=-rate / (1 - BETAS[0] ** t))

    def save(self, path: Path, key: str) -> None:
        """Write weights, moments and step to one file, complete or not at all; `key` says what run it is of."""
        parts = (("weight", self.weights), ("first", self._first), ("second", self._second))
        tensors = {f"{part}.{name}": t.detach() for part, named in parts for name, t in named.items()}
        tensors["draft_ids"] = self.draft_ids
        partial = path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"step": str(self.step), "key": key})
        os.replace(partial, path)

    def load(self, path: Path, key: str) -> None:
        """Go on from a file of save(); ValueError if it is damaged or of another run."""
        try:
            file = safe_open(path, framework="pt", device="cpu")
            facts = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except Exception as error:  # SafetensorError, OSError
            raise ValueError(f"train-draft: {path} must be a checkpoint of this run, got {error}") from None
        if facts.get("key") != key:
            raise ValueError(
                f"train-draft: {path} must be of the same options, model and data, got {facts.get('key')}"
            )
        shapes = head_shapes(self.config)
        for part, named in (("weight", self.weights), ("first", self._first), ("second", self._second)):
            for name, shape in shapes.items():
                tensor = stored.get(f"{part}.{name}")
                if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
                    raise ValueError(
                        f"train-draft: {path}: {part}.{name} must be f32 {list(shape)}, got {tensor}"
                    )
                with torch.no_grad():
                    named[name].copy_(tensor)
        if not (
            facts.get("step", "").isdigit()
            and torch.equal(stored.get("draft_ids", torch.empty(0)), self.draft_ids)
        ):
            raise ValueError(f"train-draft: {path} must have the step and this draft vocabulary, got others")
        self.step = int(facts["step"])


def run_key(options: TrainOptions, digest: str) -> str:
    """What a checkpoint must have been made for: the options that change weights, and the data."""
    return json.dumps({**options.described(), "data": digest}, sort_keys=True)


def split(count: int, held_out: int) -> tuple[list[int], list[int]]:
    """Indices for training and for validation: every held_out-th sample is for validation. ValueError where one has none."""
    validation = list(range(held_out - 1, count, held_out))
    training = [i for i in range(count) if i % held_out != held_out - 1]
    if not training or not validation:
        raise ValueError(f"data: samples must be at least held_out={held_out}, got {count}")
    return training, validation


def batches_of(indices: Sequence[int], rows: Callable[[int], int], most: int) -> Iterator[list[int]]:
    """Runs of neighbours with up to `most` rows together, at least one sample each."""
    batch: list[int] = []
    filled = 0
    for index in indices:
        size = rows(index)
        if batch and filled + size > most:
            yield batch
            batch, filled = [], 0
        batch.append(index)
        filled += size
    if batch:
        yield batch


def spans_of(texts: Sequence[Text]) -> tuple[tuple[int, int, int], ...]:
    """Row spans of texts one behind the other: a text of n tokens has n - 2 rows, its answer begins at row start - 1."""
    spans, begin = [], 0
    for text in texts:
        end = begin + len(text.tokens) - 2
        spans.append((begin, begin + text.start - 1, end))
        begin = end
    return tuple(spans)


def _offsets(counts: Sequence[int], reach: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first row of a text among rows laid out by `counts`, chains that reach on), text by text."""
    begin = 0
    for count, n in zip(counts, reach, strict=True):
        yield begin, n
        begin += count
