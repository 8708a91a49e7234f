# SPDX-License-Identifier: Apache-2.0
"""How the trees of a step were drawn, for verifiers that reject by it, and which verifier may meet which drafts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyspec.drafts.base import Draft, DrawnRows, Proposal
from pyspec.errors import UnsupportedError
from pyspec.trees.policy import StaticPolicy
from pyspec.trees.token_tree import Drawn, TokenTree
from pyspec.trees.verifiers import FIXED, VERIFIERS, Verifier, how_drawn, refusal


class DrawnTree(NamedTuple):
    """A tree whose children were drawn, and from what."""

    tree: TokenTree
    rows: DrawnRows


class BatchDrawn:
    """How the step's trees are verified, and what verify_drawn wants to know of them, one after another."""

    def __init__(self, verifier: Verifier = VERIFIERS["shared_noise"]) -> None:
        self.verifier = verifier
        self._trees: list[tuple[int, DrawnTree | None]] = []

    def fill(self, trees: Sequence[tuple[int, DrawnTree | None]]) -> None:
        """Rows of logits of every request, and its tree if it has one."""
        self._trees = list(trees)

    def per_node(self) -> dict[str, NDArray]:
        """drawn [R], draft_row [R] and draft_temperature [B] of verify_drawn, by name."""
        count = sum(rows for rows, _ in self._trees)
        drawn, row = np.zeros(count, dtype=np.int32), np.full(count, -1, dtype=np.int32)
        temperature = np.ones(len(self._trees), dtype=np.float32)
        begin = first = 0
        for b, (size, tree) in enumerate(self._trees):
            if tree is not None and self.verifier.walk != "target":
                nodes, rows = slice(begin, begin + size), tree.rows
                drawn[nodes] = how_drawn(tree.tree)
                row[nodes] = np.where(rows.row_of < 0, -1, rows.row_of + first)
                temperature[b] = rows.temperature
                first += len(rows.rows)
            begin += size
        return {"drawn": drawn, "draft_row": row, "draft_temperature": temperature}

    def draft_logits(self) -> list[Tensor]:
        """The rows that draft_row counts, one tree after another, where the drafts left them."""
        if self.verifier.walk == "target":
            return []
        return [tree.rows.rows for _, tree in self._trees if tree is not None]

    def arrays(self, vocab_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """drawn [R], draft_logits [rows, V], draft_row [R], draft_temperature [B] of verify_drawn, on the host."""
        drawn, row, temperature = map(torch.from_numpy, self.per_node().values())
        logits = self.draft_logits()
        return drawn, torch.cat(logits) if logits else torch.empty(0, vocab_size), row, temperature


def check_drafts(name: str, mode: str, drafts: Sequence[Draft]) -> Verifier:
    """The verifier of that name for an engine whose requests use these drafts (none: those that the mode names).

    ValueError for an unknown name, UnsupportedError with the reason for a draft whose trees would bias it, and for drawn trees
    beside other drafts (their union follows no rule).
    """
    if name not in VERIFIERS:
        raise ValueError(f"LLM: verifier must be {'|'.join(VERIFIERS)}, got {name!r}")
    rules = {draft.name: rule_of(draft) for draft in drafts}
    if len(rules) > 1 and (drawn := [draft for draft, rule in rules.items() if rule not in FIXED]):
        raise UnsupportedError(
            f"LLM: draft must be {drawn[0]} alone, whose children are drawn {rules[drawn[0]].value}, got {', '.join(rules)}: "
            "no verifier is exact for a union of drawn trees"
        )
    if mode != "off":
        kinds = [(rule_of(draft), _draws_chains(draft)) for draft in drafts]
        for rule, chain in kinds or [(Drawn.DETERMINISTIC, mode == "ngram")]:
            if reason := refusal(name, rule, chain=chain and mode != "random"):
                raise UnsupportedError(f"LLM: {reason}")
    return VERIFIERS[name]


def rule_of(draft: Draft) -> Drawn:
    """How a draft draws; one without a policy proposes what it knows, without randomness."""
    return getattr(getattr(draft, "policy", None), "drawn", Drawn.DETERMINISTIC)


def _draws_chains(draft: Draft) -> bool:
    policy = getattr(draft, "policy", None)
    if isinstance(policy, StaticPolicy):
        return all(parent == i - 1 for i, parent in enumerate(policy.shape))
    return draft.name == "ngram"


def unverifiable(name: str, proposal: Proposal, vocab_size: int) -> str:
    """Why a checked proposal cannot be verified by the engine's verifier, or ""."""
    tree, rows = proposal.tree, proposal.drawn
    if reason := refusal(name, tree.drawn, pruned=tree.pruned, chain=tree.is_chain):
        return reason
    if tree.drawn in FIXED or VERIFIERS[name].walk in ("", "target"):
        return ""
    if rows is None:
        return f"a tree drawn {tree.drawn.value} must come with the rows it was drawn from, got none"
    if rows.rows.dtype != torch.float32 or rows.rows.dim() != 2 or rows.rows.size(1) != vocab_size:
        return f"drawn.rows must be float32 [R, {vocab_size}], got {rows.rows.dtype} {list(rows.rows.shape)}"
    if rows.row_of.dtype != np.int32 or rows.row_of.shape != tree.tokens.shape:
        return f"drawn.row_of must be int32 [{len(tree)}], got {rows.row_of.dtype} {list(rows.row_of.shape)}"
    if rows.row_of.min() < -1 or rows.row_of.max() >= len(rows.rows):
        return f"drawn.row_of must be in [-1, {len(rows.rows)}), got others"
    if not 0 <= rows.temperature < float("inf"):
        return f"drawn.temperature must be finite and >= 0, got {rows.temperature:g}"
    if (rows.row_of[tree.parents[1:]][how_drawn(tree)[1:] > 0] < 0).any():
        return "drawn.row_of must be a row above every drawn node, got -1"
    return ""
