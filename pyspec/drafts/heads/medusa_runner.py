# SPDX-License-Identifier: Apache-2.0
"""What runs Medusa heads for a ModelDraft: it looks like a draft's model, but a level is one head, and nothing is kept but the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyspec import ops
from pyspec.drafts.heads.medusa import MedusaConfig
from pyspec.models.quant_formats import QuantTensor

Load = Callable[[str], Tensor | QuantTensor]


class Matrix:
    """A weight [N, K] packed once, that rows are multiplied with."""

    def __init__(self, weight: Tensor | QuantTensor) -> None:
        self._rows = weight.shape[0]
        self._format = weight.format if isinstance(weight, QuantTensor) else ""
        if isinstance(weight, QuantTensor):
            self.packed = ops.pack_quant_weight(weight.data, format=weight.format)
        else:
            self.packed = ops.pack_weight(weight if weight.dtype == torch.bfloat16 else weight.float())

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self._format:
            return ops.quant_linear(
                x, self.packed, bias, format=self._format, layout="packed", num_rows=self._rows
            )
        return ops.linear_packed(x, self.packed, bias, num_rows=self._rows)


@dataclass
class MedusaText:
    """Entries of one request: all that is kept of them is their number."""

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


class MedusaBranches:
    """Nodes need no place: a path has no state."""

    def advance(self, parents: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        return np.zeros(len(parents), dtype=np.int32), np.zeros((len(parents), 1), dtype=np.int32)


class MedusaRunner:
    """The heads of one target. See DraftRunner: `follow` gives the logits of the first head, each `step` those of the next one.

    Rows of one request are the same whatever their tokens, and are computed once.
    """

    def __init__(
        self, config: MedusaConfig, load: Load, final_norm: Tensor, eps: float, max_entries: int, beam: int
    ) -> None:
        """load: weights by the names of MedusaCheckpoint, and "target_head" where the heads have none of their own."""
        self.sizes = MedusaSizes(max_entries, config.num_heads, beam)
        self._norm, self._eps, self._level = final_norm.float(), eps, 0
        shared = {"one": "lm_head", "none": "target_head"}.get(config.own_heads)
        head = Matrix(load(shared)) if shared else None
        self._blocks: list[list[tuple[Matrix, Tensor | None]]] = []
        self._heads: list[Matrix] = []
        for i in range(config.num_heads):
            names = [f"{i}.{block}" for block in range(config.num_blocks)]
            biases = [_vector(load(f"{name}.bias")) if config.bias else None for name in names]
            self._blocks.append(
                [(Matrix(load(f"{name}.weight")), bias) for name, bias in zip(names, biases, strict=True)]
            )
            self._heads.append(head or Matrix(load(f"{i}.lm_head")))

    def nbytes(self) -> int:
        """Packed weights, in bytes."""
        matrices = {*self._heads, *(matrix for blocks in self._blocks for matrix, _ in blocks)}
        return sum(matrix.packed.nbytes for matrix in matrices)

    def open(self) -> MedusaText:
        return MedusaText()

    def close(self, text: MedusaText) -> None:
        text.kv_len = 0

    def branches(self, text: MedusaText) -> MedusaBranches:
        return MedusaBranches()

    def follow(
        self, texts: Sequence[MedusaText], tokens: Sequence[Sequence[int]], inputs: Sequence[Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, columns] of the first head behind each text, and what the next ones need, [B, hidden]."""
        assert inputs is not None, "the heads have an input"
        for text, part in zip(texts, tokens, strict=True):
            text.kv_len += len(part)
        x = ops.rms_norm(torch.cat([rows[-1:] for rows in inputs]), self._norm, eps=self._eps)
        self._level = 0
        return self._logits(x), x

    def step(
        self,
        tokens: NDArray[np.int32],
        lengths: NDArray[np.int32],
        tables: NDArray[np.int32],
        inputs: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [F, columns] of the next head; inputs [F, hidden]: what the nodes' texts gave."""
        assert inputs is not None, "the heads have an input"
        self._level += 1
        x, counts = torch.unique_consecutive(inputs, return_counts=True, dim=0)
        return self._logits(x).repeat_interleave(counts, 0), inputs

    def _logits(self, x: Tensor) -> Tensor:
        for matrix, bias in self._blocks[self._level]:
            x = x + torch.nn.functional.silu(matrix(x, bias))
        return self._heads[self._level](x)


def _vector(weight: Tensor | QuantTensor) -> Tensor:
    assert isinstance(weight, Tensor)  # biases: the checkpoint's are float
    return weight.float()
