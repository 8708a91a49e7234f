# SPDX-License-Identifier: Apache-2.0
"""GrowingTree: one request's tree while a draft's model grows it: where its frontier lies in the last forward, and what was drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyspec.trees.policy import Growth, Level

from .base import DrawnRows, Proposal
from .model_state import ModelState

if TYPE_CHECKING:
    from pyspec.engine.draft_runner import Branches, DraftRunner


class GrowingTree:
    """One request's tree while it grows."""

    def __init__(self, index: int, row: int, state: ModelState, growth: Growth) -> None:
        self.index, self.state, self.growth = index, state, growth
        self.level = growth.level()
        self.first_row = row  # of its frontier in the last forward
        self.tokens: list[int] = []  # of the frontier's nodes
        self.parents: list[int] = []  # their parents' places in the last frontier
        self.rows: list[Tensor] = []
        self.row_nodes: list[int] = []
        self._branches: Branches | None = None

    @property
    def frontier(self) -> Level:
        assert self.level is not None
        return self.level

    def add(self, tokens: NDArray[np.int32], parents: NDArray, scores: NDArray[np.float32]) -> None:
        self.growth.add(tokens, parents, scores)

    def next_level(self) -> bool:
        """Move to the next frontier; False if the tree is done."""
        place = {node: i for i, node in enumerate(self.frontier.nodes.tolist())}
        self.level = self.growth.level()
        if self.level is None:
            return False
        nodes = self.level.nodes.tolist()
        self.tokens = [self.growth.tokens[node] for node in nodes]
        self.parents = [place[self.growth.parents[node]] for node in nodes]
        return True

    def advance(self, runner: DraftRunner) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        if self._branches is None:
            self._branches = runner.branches(self.state.text)
        return self._branches.advance(self.parents)

    def proposal(self) -> Proposal:
        tree, probability = self.growth.finish()
        drawn = None
        if self.rows:
            row_of = np.full(len(tree), -1, dtype=np.int32)
            row_of[self.row_nodes] = np.arange(len(self.row_nodes))
            drawn = DrawnRows(torch.cat(self.rows), row_of, self.state.draw_temperature)
        return Proposal(tree, probability.astype(np.float32), drawn)
