# SPDX-License-Identifier: Apache-2.0
"""From what `LLM(draft=...)` was given to drafts that run: names, other models, layers of the model itself, and objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from pyspec.calls import Calls
from pyspec.drafts.aligned import AlignedDraft, without_noise
from pyspec.drafts.base import Draft, HostDraft, PerRequest
from pyspec.drafts.heads.loading import EAGLE3, MTP, head_draft, head_kind, named_head
from pyspec.drafts.model import ModelDraft, extent
from pyspec.drafts.ngram import NgramDraft
from pyspec.drafts.suffix import SuffixDraft
from pyspec.engine.draft_runner import DraftRunner, DraftSizes
from pyspec.engine.executor import Weights, calls_of
from pyspec.models.checkpoint import Checkpoint, open_checkpoint
from pyspec.models.config import ModelConfig
from pyspec.models.decoder import decoder
from pyspec.models.fetch import resolve_model
from pyspec.models.program import Program
from pyspec.models.quant_formats import QuantTensor
from pyspec.models.rope_table import rope_table
from pyspec.trees.policy import BestFirstPolicy, TreePolicy

DraftSpec: TypeAlias = "str | Path | Draft | HostDraft | tuple[str, Sequence[int]] | Sequence[Any] | None"
LAYER_SKIP = "layer_skip"
HOST_DRAFTS = {"suffix": SuffixDraft, "ngram": NgramDraft}


@dataclass(frozen=True)
class Target:
    """The model that is drafted for, and the sizes of the engine around it. executor: a resolved name.

    chunk: tokens of a prompt that a step computes; policy: how drafts with a model grow their trees; num_pages: of its requests.
    """

    checkpoint: Checkpoint
    weights: Weights
    executor: str
    kv_dtype: torch.dtype
    page_size: int
    max_batch: int
    max_context: int
    max_nodes: int
    chunk: int
    policy: TreePolicy
    num_pages: int

    @property
    def config(self) -> ModelConfig:
        return self.checkpoint.config

    @property
    def calls(self) -> Calls:
        """Ops as this engine's executor runs them."""
        return calls_of(self.executor)

    def runner(
        self,
        program: Program,
        weights: Weights,
        checkpoint: Checkpoint | None = None,
        *,
        layers: int,
        kv_heads: int,
        head_dim: int,
        branch: Program | None = None,
        max_entries: int | None = None,
    ) -> DraftRunner:
        """A runner of this engine's sizes for a draft's programs. checkpoint: whose file pages are let go once weights are packed."""
        depth, beam = extent(self.policy)
        sizes = DraftSizes(
            layers, kv_heads, head_dim, self.kv_dtype, self.page_size, self.max_batch,
            min(max_entries or self.max_context, self.max_context), depth, beam, self.chunk,
            self.num_pages + self.max_batch,
        )  # fmt: skip
        release = (checkpoint or self.checkpoint).release_pages
        return DraftRunner(self.executor, sizes, weights, release, program, branch)

    def positions(self) -> int:
        """Rows of a RoPE table: positions of texts and of the trees behind them."""
        return self.max_context + max(self.max_nodes, extent(self.policy)[0])


def add_rope_tables(weights: Weights, checkpoint: Checkpoint, positions: int) -> None:
    """The angles of a decoder as weights of its program: rope_full, rope_sliding."""
    config = checkpoint.config
    factors = weights["rope_factors"] if "rope_factors" in checkpoint.names() else None
    assert not isinstance(factors, QuantTensor)  # the loaders check that it is f32
    for layer_type in sorted(set(config.layer_types)):
        weights["rope_" + layer_type] = rope_table(config, layer_type, positions, factors)


def default_policy(max_nodes: int) -> TreePolicy:
    """Noise-aware best-first trees."""
    return BestFirstPolicy(beam=max(1, min(8, max_nodes - 1)))


def make_drafts(spec: DraftSpec, target: Target) -> list[Draft]:
    """The drafts that `spec` names, in order; none for None.

    ValueError for an unknown spec or a model that does not fit the target, FileNotFoundError for a name without a file.
    """
    if spec is None:
        return []
    if isinstance(spec, (list, tuple)) and not _is_layer_skip(spec):
        drafts = [draft for part in spec for draft in make_drafts(part, target)]
        names = [draft.name for draft in drafts]
        if len(set(names)) != len(names):
            raise ValueError(f"LLM: draft must name each draft once, got {', '.join(names)}")
        return drafts
    return [_make_draft(spec, target)]


def _is_layer_skip(spec: object) -> bool:
    return isinstance(spec, tuple) and len(spec) == 2 and spec[0] == LAYER_SKIP


def _make_draft(spec: Any, target: Target) -> Draft:
    if isinstance(spec, str) and spec in HOST_DRAFTS:
        return PerRequest(spec, HOST_DRAFTS[spec]())
    if isinstance(spec, str) and spec.startswith(LAYER_SKIP + ":"):
        spec = LAYER_SKIP, _layer_list(spec)
    if _is_layer_skip(spec):
        return layer_skip_draft(spec[1], target)
    if isinstance(spec, str) and spec in (MTP, EAGLE3):
        return head_draft(*named_head(spec, target), target)
    if isinstance(spec, (str, Path)):
        kind = head_kind(Path(spec))
        return draft_model(spec, target) if kind is None else head_draft(Path(spec), kind, target)
    if hasattr(spec, "propose") and hasattr(spec, "start"):
        return spec
    if hasattr(spec, "start"):
        return PerRequest(type(spec).__name__, spec)
    rule = "a name, a path, a draft, ('layer_skip', layers), or several of them"
    raise ValueError(f"LLM: draft must be {rule}, got {spec!r}")


def _layer_list(text: str) -> list[int]:
    """ "layer_skip:0,1,28-29" as [0, 1, 28, 29]."""
    layers: list[int] = []
    for part in text.partition(":")[2].split(","):
        ends = part.split("-")
        if len(ends) > 2 or not all(end.isdecimal() and len(end) <= 4 for end in ends):
            raise ValueError(f"LLM: draft must be like 'layer_skip:0,1,28-29', got {text!r}")
        layers += range(int(ends[0]), int(ends[-1]) + 1)
    return layers


def layer_skip_draft(layers: Sequence[int], target: Target) -> ModelDraft:
    """Self-speculation: the target with `layers` alone, ascending; its weights are the target's, its KV is its own."""
    config = target.config
    if not layers or not all(isinstance(i, int) for i in layers):
        raise ValueError(f"LLM: draft layers must be integers, at least one, got {layers!r}")
    program = decoder(config, layers=tuple(layers))
    runner = target.runner(
        program, target.weights, layers=len(layers), kv_heads=config.num_kv_heads, head_dim=config.head_dim
    )
    vocab = config.vocab_size
    return ModelDraft(LAYER_SKIP, runner, target.policy, vocab_size=vocab, model_vocab_size=vocab)


def draft_model(name: str | Path, target: Target) -> Draft:
    """A separate model; one with another tokenizer drafts by text."""
    checkpoint = open_checkpoint(resolve_model(name))
    config, same = checkpoint.config, _same_tokens(checkpoint, target.checkpoint)
    if not same:
        target = replace(target, policy=without_noise(target.policy))
    weights = Weights(checkpoint.weight)
    add_rope_tables(weights, checkpoint, target.positions())
    runner = target.runner(
        decoder(config), weights, checkpoint, layers=config.num_layers, kv_heads=config.num_kv_heads,
        head_dim=config.head_dim, max_entries=config.max_position,
    )  # fmt: skip
    own = sum(tensor.nbytes for tensor in weights.packed.values())
    draft = ModelDraft(
        "model", runner, target.policy, vocab_size=target.config.vocab_size if same else config.vocab_size,
        model_vocab_size=config.vocab_size, own_bytes=own,
    )  # fmt: skip
    if same:
        return draft
    return AlignedDraft(draft, config.vocab_size, checkpoint.tokenizer, target.checkpoint.tokenizer)


def _same_tokens(draft: Checkpoint, target: Checkpoint) -> bool:
    """Whether ids mean the same bytes to both: all that both can have are compared."""
    if draft.path == target.path:
        return True
    one, other = draft.tokenizer, target.tokenizer
    count = min(one.vocab_size, other.vocab_size)
    return one.special_ids == other.special_ids and all(
        one.token_bytes(token) == other.token_bytes(token) for token in range(count)
    )
