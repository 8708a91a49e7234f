# SPDX-License-Identifier: Apache-2.0
"""What the target made of every text: tapped hidden states, computed once and kept on disk in bf16.

One safetensors file per block of samples, complete or absent like the shards of the text: `states` [n, (taps + 1) * hidden] bf16 for
all tokens of the block's samples. The last part is what enters the final norm: from it follow the target's logits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyspec.models.checkpoint import Checkpoint
from pyspec.models.quant_formats import QuantTensor, dequantize
from pyspec.training.data import Sample

if TYPE_CHECKING:
    from pyspec.engine.llm import LLM

BLOCK = 64  # samples a file


class Teacher:
    """The target's end in f32: final norm and LM head, and its embedding."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self.embed = _float(checkpoint, "embed")
        self.head = self.embed if self.config.tie_embeddings else _float(checkpoint, "lm_head")
        self.final_norm = _float(checkpoint, "final_norm")

    def logits(self, last: Tensor, head: Tensor) -> Tensor:
        """Logits [n, rows of head] f32 of states [n, hidden] that enter the final norm, for some rows of the LM head."""
        x = last.float()
        x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.config.rms_eps) * self.final_norm
        out = x @ head.T
        cap = self.config.logit_softcap
        return cap * torch.tanh(out / cap) if cap else out

    def embeddings(self, tokens: Tensor) -> Tensor:
        """[n, hidden] f32."""
        return self.embed[tokens] * self.config.embed_scale


def _float(checkpoint: Checkpoint, name: str) -> Tensor:
    weight = checkpoint.weight(name)
    return dequantize(weight).float() if isinstance(weight, QuantTensor) else weight.float()


@dataclass(frozen=True)
class Text:
    """One sample: tokens [n] int64, the answer from token `start` on; taps [n, taps * hidden] and last [n, hidden] bf16."""

    tokens: Tensor
    start: int
    taps: Tensor
    last: Tensor


class FeatureStore:
    """The features of `samples`, each cut to max_length tokens, in a folder."""

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Sample],
        taps: tuple[int, ...],
        hidden: int,
        max_length: int,
        target: str,
    ) -> None:
        """taps: ascending layers of a target with `hidden` columns. target names the model by content: features of another model, text or length are made anew.

        Samples whose answer has fewer than three tokens within max_length teach nothing and are left out.
        """
        kept = [(s.kind, len(s.prompt), (s.prompt + s.answer)[:max_length]) for s in samples]
        kept = [one for one in kept if len(one[2]) - one[1] >= 3]
        self._kinds = [kind for kind, _, _ in kept]
        self._samples = [(start, tokens) for _, start, tokens in kept]
        if not self._samples:
            raise ValueError(f"data: max_length must leave answers of 3 tokens, got {max_length}")
        self._folder, self._taps, self._hidden = folder, taps, hidden
        self._key = f"{target} taps={taps}"

    def __len__(self) -> int:
        return len(self._samples)

    def length(self, index: int) -> int:
        """Tokens of a sample."""
        return len(self._samples[index][1])

    def kind(self, index: int) -> str:
        """What sort of text a sample is."""
        return self._kinds[index]

    def answer(self, index: int) -> list[int]:
        """Token ids of a sample's answer."""
        start, tokens = self._samples[index]
        return tokens[start:]

    def digest(self) -> str:
        """SHA-256 of all token ids and the target: what this training learns from."""
        return self._digest(self._samples)

    def _digest(self, samples: Sequence[tuple[int, list[int]]]) -> str:
        return hashlib.sha256(json.dumps([self._key, samples]).encode()).hexdigest()

    def compute(self, llm: LLM, write: Callable[[int], object]) -> None:
        """Make the files that are missing; write(tokens) after each block."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for block in range(-(-len(self) // BLOCK)):
            samples = self._samples[block * BLOCK : (block + 1) * BLOCK]
            if not self._is_done(block):
                self._save(block, samples, llm)
            write(sum(len(tokens) for _, tokens in samples))

    def _path(self, block: int) -> Path:
        return self._folder / f"features-{block:05d}.safetensors"

    def _is_done(self, block: int) -> bool:
        samples, path = self._samples[block * BLOCK : (block + 1) * BLOCK], self._path(block)
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                return bool((file.metadata() or {}).get("digest") == self._digest(samples))
        except Exception:  # SafetensorError, OSError: a damaged file is made anew
            return False

    def _save(self, block: int, samples: Sequence[tuple[int, list[int]]], llm: LLM) -> None:
        last = llm.config.num_layers
        layers = self._taps if last in self._taps else (*self._taps, last)
        states = [llm.hidden_states(tokens, layers).to(torch.bfloat16) for _, tokens in samples]
        tensors = {"states": torch.cat(states)}
        if not bool(tensors["states"].isfinite().all()):
            raise ValueError(
                f"train-draft: model must give finite hidden states, got others in block {block}"
            )
        partial = self._path(block).with_suffix(".partial")
        save_file(tensors, partial, metadata={"digest": self._digest(samples)})
        os.replace(partial, self._path(block))

    def texts(self, indices: Sequence[int]) -> Iterator[Text]:
        """Samples by index, in the order given; each block's file is opened once per run of neighbours."""
        opened: tuple[int, Any] = (-1, None)
        for index in indices:
            block, at = divmod(index, BLOCK)
            if opened[0] != block:
                opened = (block, safe_open(self._path(block), framework="pt", device="cpu"))
            begin = sum(len(tokens) for _, tokens in self._samples[index - at : index])
            start, tokens = self._samples[index]
            rows = slice(begin, begin + len(tokens))
            states = opened[1].get_slice("states")[rows]
            taps = states[:, : len(self._taps) * self._hidden]
            yield Text(torch.tensor(tokens), start, taps, states[:, -self._hidden :])
