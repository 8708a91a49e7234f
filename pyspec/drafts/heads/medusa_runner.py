# SPDX-License-Identifier: Apache-2.0
"""What runs Medusa heads for a ModelDraft: it looks like a draft's model, but a level is one head, and nothing is kept but the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyspec.calls import Calls, HostCalls, take_rows
from pyspec.drafts.heads.medusa import MedusaConfig
from pyspec.errors import UnsupportedError
from pyspec.models.quant_formats import QuantTensor

Load = Callable[[str], Tensor | QuantTensor]


class Matrix:
    """A weight [N, K] that rows are multiplied with: packed once on the CPU, as rows on a GPU."""

    def __init__(self, weight: Tensor | QuantTensor, calls: Calls) -> None:
        self._packed = {"layout": "packed", "num_rows": weight.shape[0]} if calls.packs else {}
        self._format = weight.format if isinstance(weight, QuantTensor) else ""
        if isinstance(weight, QuantTensor):
            rows = weight.data
        else:
            rows = weight if weight.dtype == torch.bfloat16 else weight.float()
        if not calls.packs:
            self.held = rows.contiguous().to(calls.device)
        elif self._format:
            self.held = calls("pack_quant_weight", rows, format=self._format)
        else:
            self.held = calls("pack_weight", rows)

    def multiply(self, call: Callable[..., Tensor], x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x times the weight, by call(op, ...)."""
        if self._format:
            return call("quant_linear", x, self.held, bias, format=self._format, **self._packed)
        if self._packed:
            return call("linear_packed", x, self.held, bias, num_rows=self._packed["num_rows"])
        return call("linear", x, self.held, bias)


@dataclass
class MedusaText:
    """Entries of one request: all that is kept of them is how many they are. number: of the text, no two have the same."""

    number: int
    kv_len: int = 0

    @property
    def row(self) -> MedusaText:
        return self

    @property
    def length(self) -> int:
        return self.kv_len


@dataclass(frozen=True)
class MedusaSizes:
    """As DraftSizes: a tree is as deep as there are heads."""

    max_entries: int
    max_depth: int
    beam: int


@dataclass(frozen=True)
class MedusaBranches:
    """Nodes need no place, as a path has no state: in the place of a table of pages they have the text's number."""

    number: int

    def advance(self, parents: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return np.zeros(len(parents), np.int32), np.full((len(parents), 1), self.number, np.int32)


class MedusaRunner:
    """The heads of one target. See DraftRunner: `follow` gives the logits of the first head, each `step` those of the next one.

    Rows of one request are the same whatever their tokens, and are computed once.
    """

    def __init__(
        self,
        config: MedusaConfig,
        load: Load,
        final_norm: Tensor,
        eps: float,
        max_entries: int,
        beam: int,
        calls: Calls | None = None,
    ) -> None:
        """load: weights by the names of MedusaCheckpoint, and "target_head" where the heads have none of their own.

        calls: of the executor, by default the CPU's. UnsupportedError if it cannot run the heads.
        """
        self.calls = calls = calls or HostCalls()
        self.sizes = MedusaSizes(max_entries, config.num_heads, beam)
        self._norm, self._eps, self._level = final_norm.float().to(calls.device), eps, 0
        self._opened = 0  # texts so far
        matrix = lambda name: Matrix(load(name), calls)
        vector = lambda name: _vector(load(name)).to(calls.device)
        shared = {"one": "lm_head", "none": "target_head"}.get(config.own_heads)
        head = matrix(shared) if shared else None
        self._blocks: list[list[tuple[Matrix, Tensor | None]]] = []
        self._heads: list[Matrix] = []
        for i in range(config.num_heads):
            names = [f"{i}.{block}" for block in range(config.num_blocks)]
            self._blocks.append(
                [
                    (matrix(f"{name}.weight"), vector(f"{name}.bias") if config.bias else None)
                    for name in names
                ]
            )
            self._heads.append(head or matrix(f"{i}.lm_head"))
        self._rehearse(config)

    def nbytes(self) -> int:
        """Weights, in bytes."""
        matrices = {*self._heads, *(matrix for blocks in self._blocks for matrix, _ in blocks)}
        return sum(matrix.held.nbytes for matrix in matrices)

    def open(self) -> MedusaText:
        self._opened += 1
        return MedusaText(self._opened)

    def reserve(self, text: MedusaText, entries: int) -> str:
        """Nothing is kept of an entry."""
        return ""

    def close(self, text: MedusaText) -> None:
        text.kv_len = 0

    def branches(self, text: MedusaText) -> MedusaBranches:
        return MedusaBranches(text.number)

    def follow(
        self, texts: Sequence[MedusaText], tokens: Sequence[Sequence[int]], inputs: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, columns] of the first head behind each text, and what the next ones need, [B, hidden]."""
        assert inputs is not None, "the heads have an input"
        for text, part in zip(texts, tokens, strict=True):
            text.kv_len += len(part)
        x = self.calls("rms_norm", torch.cat([rows[-1:] for rows in inputs]), self._norm, eps=self._eps)
        self._level = 0
        return self._logits(self.calls, x), x

    def step(
        self,
        tokens: NDArray[np.int32],
        lengths: NDArray[np.int32],
        tables: NDArray[np.int32],
        inputs: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [F, columns] of the next head; inputs [F, hidden]: what the nodes' texts gave. tables [F, 1]: the texts' numbers."""
        assert inputs is not None, "the heads have an input"
        self._level += 1
        _, first, place = np.unique(tables[:, 0], return_index=True, return_inverse=True)
        logits = self._logits(self.calls, take_rows(inputs, torch.from_numpy(first)))
        return take_rows(logits, torch.from_numpy(place)), inputs

    def _logits(self, call: Callable[..., Tensor], x: Tensor) -> Tensor:
        for matrix, bias in self._blocks[self._level]:
            x = x + torch.nn.functional.silu(matrix.multiply(call, x, bias))
        return self._heads[self._level].multiply(call, x)

    def _rehearse(self, config: MedusaConfig) -> None:
        """Ask the backend about every head."""
        row = self._norm.new_zeros(1, config.hidden_size)
        try:
            self.calls.ask("rms_norm", row, self._norm, eps=self._eps)
            for self._level in range(config.num_heads):
                self._logits(self.calls.ask, row)
        except UnsupportedError as error:
            raise UnsupportedError(f"LLM: draft medusa cannot run: {error}") from None


def _vector(weight: Tensor | QuantTensor) -> Tensor:
    assert isinstance(weight, Tensor)  # biases: the checkpoint's are float
    return weight.float()
