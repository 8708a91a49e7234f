# SPDX-License-Identifier: Apache-2.0
"""ModelDraft: trees grown level by level by a model of its own: a smaller one, some layers of the target, or a head on it.

A level is one forward of the model for the frontiers of all requests, then one op for their children: build_tree, which for
"shared_noise" adds the noise that the target itself will use at that position, or draw_children for verifiers that use
draft probabilities. The model follows the text one entry per token. A head with features pairs the target's features of a token with
the token behind it, so its entries begin with the second token, and an entry of the tree takes its parent's output for features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyspec.calls import send, take_rows
from pyspec.errors import UnsupportedError
from pyspec.trees.grown_hybrid import GrownHybridPolicy
from pyspec.trees.policy import PRUNABLE, BestFirstPolicy, Level, StaticPolicy, TreePolicy
from pyspec.trees.shapes import shape_depths

from .base import DraftState, Failure, Law, Proposal
from .growing import GrowingTree
from .model_state import ModelState

if TYPE_CHECKING:
    from pyspec.engine.draft_runner import DraftRunner


class ModelDraft:
    """A draft by a model that runs in `runner`.

    vocab_size        of the target; model_vocab_size: token ids that the model can read
    ids               int32, ascending: the target's token of each column of the model's logits; None: column x is token x, and
                      columns beyond the target's vocabulary are not used
    taps, features    layers of the target that it reads; whether entries have features as input
    own_bytes         of weights that are the draft's alone
    """

    def __init__(
        self,
        name: str,
        runner: DraftRunner,
        policy: TreePolicy,
        *,
        vocab_size: int,
        model_vocab_size: int,
        ids: Tensor | None = None,
        taps: tuple[int, ...] = (),
        own_bytes: int = 0,
    ) -> None:
        depth, beam = extent(policy)
        sizes = runner.sizes
        if depth > sizes.max_depth or beam > sizes.beam:
            rule = f"depth <= {sizes.max_depth} and beam <= {sizes.beam}"
            raise ValueError(f"ModelDraft: policy must have {rule}, got {depth} and {beam}")
        calls = runner.calls
        op = "build_tree" if policy.drawn in PRUNABLE else "draw_children"
        if reason := calls.lacks(op):
            raise UnsupportedError(f"LLM: draft {name} cannot run: {op}: {reason}")
        self.name, self.taps, self.levels = name, taps, 0
        self.policy, self.runner = policy, runner
        self._vocab_size, self._model_vocab_size = vocab_size, model_vocab_size
        self._calls, self._host_ids = calls, ids
        self._ids = None if ids is None else ids.to(calls.device)
        self._own_bytes = own_bytes
        self._known: tuple[list[ModelState], tuple[Tensor, Tensor, Tensor]] | None = None

    def start(self, law: Law, max_tokens: int) -> ModelState:
        return ModelState(self.runner, law, self._model_vocab_size, bool(self.taps))

    def nbytes(self) -> int:
        return self._own_bytes + self.runner.nbytes()

    def propose(
        self,
        states: Sequence[DraftState],
        roots: Sequence[int],
        budgets: Sequence[int],
        min_gain: float = 0.0,
    ) -> list[Proposal | Failure]:
        results: list[Proposal | Failure] = [Proposal.root(root) for root in roots]
        self.levels = 0
        trees: list[GrowingTree] = []
        for i, (state, root, budget) in enumerate(zip(states, roots, budgets, strict=True)):
            assert isinstance(state, ModelState)
            if root >= self._model_vocab_size:
                state.problem = f"the draft model has {self._model_vocab_size} tokens, got token {root}"
            elif state.room() < 1:
                state.problem = f"the draft's context of {self.runner.sizes.max_entries} tokens is full"
            if state.problem:
                results[i] = Failure(state.problem)
                continue
            if reason := self.runner.reserve(state.text, self.runner.sizes.max_entries - state.room() + 1):
                results[i] = Failure(reason)  # other texts have the pages now
                continue
            tree = GrowingTree(i, len(trees), state, self.policy.start(root, budget, min_gain))
            if tree.level is not None:
                trees.append(tree)
        if not trees:
            return results
        logits, output = self._follow(trees, [roots[tree.index] for tree in trees])
        growing = trees
        while True:
            self._expand(growing, self._over_vocabulary(logits))
            depth = self.levels  # of the nodes just added
            growing = [tree for tree in growing if tree.next_level() and depth < self.runner.sizes.max_depth]
            if not growing:
                break
            logits, output = self._step(growing, output)
        for tree in trees:
            tree.state.step += 1
            results[tree.index] = tree.proposal()
        return results

    def _follow(self, trees: Sequence[GrowingTree], roots: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        entries = [tree.state.entries(root) for tree, root in zip(trees, roots, strict=True)]
        features = [rows for _, rows in entries if rows is not None]
        result = self.runner.follow(
            [tree.state.text for tree in trees], [tokens for tokens, _ in entries], features or None
        )
        for tree, (_, rows) in zip(trees, entries, strict=True):
            tree.state.computed(rows)
        self.levels += 1
        return result

    def _step(self, trees: Sequence[GrowingTree], output: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One forward of all frontiers. `output`: of the last forward, a row per frontier node of it."""
        tokens, lengths, tables, rows = [], [], [], []
        for tree in trees:
            length, table = tree.advance(self.runner)
            tokens += tree.tokens
            lengths.append(length)
            tables.append(table)
            rows += [tree.first_row + parent for parent in tree.parents]
        first = 0
        for tree in trees:
            tree.first_row = first
            first += len(tree.tokens)
        inputs = None if output is None else take_rows(output, torch.tensor(rows))
        self.levels += 1
        return self.runner.step(
            np.array(tokens, dtype=np.int32), np.concatenate(lengths), np.concatenate(tables), inputs
        )

    def _over_vocabulary(self, logits: Tensor) -> Tensor:
        """Without columns that are no token of the target."""
        if self._ids is None and logits.size(1) > self._vocab_size:
            return logits[:, : self._vocab_size].contiguous()
        return logits

    def _expand(self, trees: Sequence[GrowingTree], logits: Tensor) -> None:
        """Children of every frontier node, from its row of logits."""
        levels = [tree.frontier for tree in trees]
        counts = [len(level.nodes) for level in levels]
        if self.policy.drawn not in PRUNABLE:
            self._draw(trees, levels, counts, logits)
            return
        per_node = levels[0].per_node
        ends = np.arange(1, sum(counts) + 1) if per_node else np.cumsum(counts)
        states = [
            tree.state
            for tree, count in zip(trees, counts, strict=True)
            for _ in range(count if per_node else 1)
        ]
        scores_above = [level.scores for level in levels]
        token, parent, score = self._calls.fetch(
            "build_tree",
            logits,
            torch.from_numpy(np.concatenate(scores_above) if len(trees) > 1 else scores_above[0]),
            _int32([0, *ends.tolist()]),
            _int32([state.count + self.levels for state in states]),
            *self._laws_of(states),
            self._ids,
            width=max(level.width for level in levels),
            rule=self.policy.drawn.value,
        )
        tokens, parents, scores = token.numpy(), parent.numpy(), score.numpy()
        first = 0
        for i, (tree, count) in enumerate(zip(trees, counts, strict=True)):
            if per_node:
                part = slice(first, first + count)
                below = np.repeat(np.arange(count), tokens.shape[1])
                tree.add(tokens[part].reshape(-1), below, scores[part].reshape(-1))
            else:
                tree.add(tokens[i], parents[i], scores[i])
            first += count

    def _laws_of(self, states: list[ModelState]) -> tuple[Tensor, Tensor, Tensor]:
        """temperature, seed and stream of these states, kept while the same ones are asked for."""
        if self._known is None or self._known[0] != states:
            laws = [state.law for state in states]
            self._known = (
                states,
                (
                    torch.tensor([law.temperature for law in laws], dtype=torch.float32),
                    torch.tensor([law.seed for law in laws], dtype=torch.int64),
                    torch.tensor([law.stream for law in laws], dtype=torch.int32),
                ),
            )
        return self._known[1]

    def _draw(
        self, trees: Sequence[GrowingTree], levels: Sequence[Level], counts: Sequence[int], logits: Tensor
    ) -> None:
        states = [tree.state for tree, count in zip(trees, counts, strict=True) for _ in range(count)]
        temperature = torch.tensor([state.draw_temperature for state in states], dtype=torch.float32)
        width = max(level.width for level in levels)
        top = self._likeliest(logits, temperature, width)
        rows = np.split(np.arange(len(states)), np.cumsum(counts)[:-1])
        wanted = np.concatenate(
            [tree.growth.counts(top[part]) for tree, part in zip(trees, rows, strict=True)]
        )
        token, log_q = self._calls.fetch(
            "draw_children",
            logits,
            _int32(wanted),
            temperature,
            torch.tensor([state.law.seed for state in states], dtype=torch.int64),
            _int32([state.law.stream for state in states]),
            _int32([state.step for state in states]),
            _int32(np.concatenate([level.nodes for level in levels])),
            width=width,
            rule=self.policy.drawn.value,
        )
        if self._host_ids is not None:
            token = torch.where(token < 0, token, self._host_ids[token.clamp(min=0).long()])
        whole = self._whole_rows(logits).split(list(counts))
        for tree, level, part, laws in zip(trees, levels, rows, whole, strict=True):
            tokens, scores = token.numpy()[part], level.scores[:, None] + log_q.numpy()[part]
            tree.rows.append(laws)
            tree.row_nodes += level.nodes.tolist()
            tree.add(tokens.reshape(-1), np.repeat(np.arange(len(part)), width), scores.reshape(-1))

    def _likeliest(self, logits: Tensor, temperature: Tensor, width: int) -> NDArray[np.float32]:
        """[rows, <= width]: the largest weights of every row, descending, for policies that ask for them: the device is waited for."""
        if not isinstance(self.policy, GrownHybridPolicy):
            return np.empty((len(logits), 0), dtype=np.float32)
        (divisor,) = send([temperature.unsqueeze(1)], logits.device)
        weights = torch.softmax(logits / divisor, 1).topk(min(width, logits.size(1)), 1).values
        found: NDArray[np.float32] = weights.cpu().numpy()
        return found

    def _whole_rows(self, logits: Tensor) -> Tensor:
        """Rows over the target's vocabulary that outlive the next forward."""
        columns = logits.size(1)
        if self._ids is None and columns == self._vocab_size:
            return logits.clone()
        whole = logits.new_full((logits.size(0), self._vocab_size), -torch.inf)
        whole[:, slice(columns) if self._ids is None else self._ids.long()] = logits
        return whole


def extent(policy: TreePolicy) -> tuple[int, int]:
    """(levels, frontier nodes of one level) of a policy's largest tree."""
    if isinstance(policy, BestFirstPolicy):
        return max(1, policy.max_depth), policy.beam
    if isinstance(policy, GrownHybridPolicy):
        return max(1, len(policy.level_nodes)), max(policy.level_nodes, default=1)
    assert isinstance(policy, StaticPolicy)
    depths = np.bincount(shape_depths(policy.shape))
    return max(1, len(depths) - 1), int(depths.max())


def _int32(values: Sequence[int] | NDArray) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.int32))
