# SPDX-License-Identifier: Apache-2.0
"""Heads in folders as drafts that run: which kind a folder holds, its programs on the target's weights, its own weights quantised.

A head's weights join the target's under names of their own, so that both share one packed embedding (and LM head, for MTP). They are
quantised as drafts need not be exact: what is read per step decides what a draft costs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from pyspec.drafts.heads.eagle3_checkpoint import Eagle3Checkpoint
from pyspec.drafts.heads.eagle3_config import is_flat_head
from pyspec.drafts.heads.eagle3_program import eagle3_program
from pyspec.drafts.heads.medusa import MedusaCheckpoint
from pyspec.drafts.heads.medusa_runner import MedusaRunner
from pyspec.drafts.heads.mtp import MtpCheckpoint, mtp_program
from pyspec.drafts.heads.shipped import shipped
from pyspec.drafts.model import ModelDraft, extent
from pyspec.models.config import ModelConfig
from pyspec.models.fields import require
from pyspec.models.program import Program
from pyspec.models.quant_formats import QuantTensor, dequantize
from pyspec.models.quantize import quantize
from pyspec.models.rope_table import rope_table
from pyspec.models.safetensors_folder import read_json
from pyspec.trees.grown_hybrid import GrownHybridPolicy
from pyspec.trees.policy import BestFirstPolicy, StaticPolicy, TreePolicy
from pyspec.trees.shapes import shape_depths

if TYPE_CHECKING:
    from pyspec.engine.draft_choice import Target
    from pyspec.engine.draft_runner import DraftRunner

MTP = "mtp"  # the module in the target's own folder
EAGLE3 = "eagle3"  # the head that comes with the package for the target
FORMATS = ("q8_0", "q4_0", "stored")
# What runs where none is named. Of an EAGLE-3 head four bits accept as much as eight (docs/drafts.md) and are read in half the time.
DEFAULT_FORMATS = {"eagle3": "q4_0"}
_OTHERS = "eagle3 (speculators, SpecForge), mtp or medusa"


@dataclass(frozen=True)
class Head:
    """A head with layers of its own: its programs (see eagle3_program), and how its weights are found.

    shared: weights that are the target's. ids int32 [columns], ascending: the tokens of its logits' columns, None for all in order.
    """

    name: str
    layer: ModelConfig
    program: Program
    branch: Program
    taps: tuple[int, ...]
    load: Callable[[str], Tensor | QuantTensor]
    shared: frozenset[str]
    ids: Tensor | None = None


def head_kind(path: Path) -> str | None:
    """ "eagle3", "mtp" or "medusa" if a folder is that of a head, None if it is not one; ValueError for other kinds of heads."""
    file = path / "config.json"
    if not file.is_file():
        return None
    raw = read_json(file)
    kind = raw.get("speculators_model_type")
    if kind is not None:
        require(kind in ("eagle3", "mtp"), "speculators_model_type", _OTHERS, kind, f"head {path}")
        return str(kind)
    if "medusa_num_heads" in raw or raw.get("model_type") == "medusa":
        return "medusa"
    return "eagle3" if is_flat_head(raw) else None


def head_draft(path: Path, kind: str, target: Target, format: str | None = None) -> ModelDraft:
    """A draft by the head in a folder. format: of its matrices, q8_0, q4_0, or as they are stored; None: q4_0 for "eagle3", else q8_0.

    ValueError for a head that is not one of this target.
    """
    format = DEFAULT_FORMATS.get(kind, "q8_0") if format is None else format
    require(format in FORMATS, "format", " or ".join(FORMATS), format, "head")
    if kind == "medusa":
        return _medusa_draft(path, target, format)
    head = _eagle3(path, target.config) if kind == "eagle3" else _mtp(path, target.config)
    layer, positions = head.layer, target.positions()

    def load(name: str) -> Tensor | QuantTensor:
        if name.startswith("rope_"):
            return rope_table(layer, name.removeprefix("rope_"), positions)
        return compact(head.load(name), "stored" if name == "embed" else format)

    target.weights.add(head.name, load)
    runner = target.runner(
        _renamed(head.program, head), target.weights, layers=layer.num_layers, kv_heads=layer.num_kv_heads,
        head_dim=layer.head_dim, branch=_renamed(head.branch, head),
    )  # fmt: skip
    vocab = target.config.vocab_size
    return ModelDraft(
        head.name,
        runner,
        target.policy,
        vocab_size=vocab,
        model_vocab_size=vocab,
        ids=head.ids,
        taps=head.taps,
    )


def named_head(name: str, target: Target) -> tuple[Path, str]:
    """(folder, kind) of the head that "mtp" or "eagle3" stands for; ValueError if there is none."""
    if name == MTP:
        return target.checkpoint.path, "mtp"
    folder = shipped(target.checkpoint)
    require(
        folder is not None,
        "draft",
        "a head's folder where none comes with the package for the model",
        name,
        "LLM",
    )
    assert folder is not None
    return folder, "eagle3"


def compact(weight: Tensor | QuantTensor, format: str) -> Tensor | QuantTensor:
    """A weight in a quantised format if it is a matrix that the format can hold; int8 weights that are q8_0 already stay so."""
    if format == "stored" or len(weight.shape) != 2 or weight.shape[1] % 32:
        return weight
    if isinstance(weight, QuantTensor):
        return weight if weight.format == format else quantize(dequantize(weight), format)
    return quantize(weight, format)


def _eagle3(path: Path, target: ModelConfig) -> Head:
    checkpoint = Eagle3Checkpoint(path)
    config = checkpoint.config
    taps = config.taps_of(target)
    load, ids = _ordered(checkpoint.weight, checkpoint.target_ids, target.vocab_size)
    shared: Collection[str] = () if config.own_embedding else ("embed",)
    programs = [eagle3_program(config, from_features) for from_features in (True, False)]
    return Head("eagle3", config.layer, programs[0], programs[1], taps, load, frozenset(shared), ids)


def _mtp(path: Path, target: ModelConfig) -> Head:
    checkpoint = MtpCheckpoint(path, target)
    programs = [
        mtp_program(checkpoint.layer, target, checkpoint.form, from_features)
        for from_features in (True, False)
    ]
    shared = frozenset(("embed", "final_norm", "lm_head"))
    return Head(
        "mtp", checkpoint.layer, programs[0], programs[1], (target.num_layers,), checkpoint.weight, shared
    )


def _medusa_draft(path: Path, target: Target, format: str) -> ModelDraft:
    config = target.config
    checkpoint = MedusaCheckpoint(path, config)
    stored, ids = _ordered(checkpoint.weight, checkpoint.target_ids, config.vocab_size)
    head = "embed" if config.tie_embeddings else "lm_head"

    def load(name: str) -> Tensor | QuantTensor:
        return compact(target.checkpoint.weight(head) if name == "target_head" else stored(name), format)

    norm = target.checkpoint.weight("final_norm")
    norm = dequantize(norm) if isinstance(norm, QuantTensor) else norm
    policy = limited(target.policy, checkpoint.config.num_heads)
    runner = MedusaRunner(
        checkpoint.config, load, norm, config.rms_eps, target.max_context, extent(policy)[1], target.calls
    )
    vocab = config.vocab_size
    return ModelDraft(
        "medusa", cast("DraftRunner", runner), policy, vocab_size=vocab, model_vocab_size=vocab, ids=ids,
        taps=(config.num_layers,),
    )  # fmt: skip


def limited(policy: TreePolicy, max_depth: int) -> TreePolicy:
    """The same policy for trees of at most `max_depth` levels."""
    if isinstance(policy, BestFirstPolicy):
        return replace(policy, max_depth=min(policy.max_depth, max_depth))
    if isinstance(policy, GrownHybridPolicy):
        return replace(policy, level_nodes=policy.level_nodes[:max_depth])
    assert isinstance(policy, StaticPolicy)
    depths = shape_depths(policy.shape)  # never falling: nodes are in level order
    return replace(policy, shape=policy.shape[: sum(depth <= max_depth for depth in depths)])


def _ordered(
    load: Callable[[str], Tensor | QuantTensor], target_ids: Tensor, vocab_size: int
) -> tuple[Callable[[str], Tensor | QuantTensor], Tensor | None]:
    """(load with the rows of LM heads by ascending token, those tokens int32 or None for the whole vocabulary)."""
    order = target_ids.argsort()
    ids = None if len(target_ids) == vocab_size else target_ids[order].int()
    if bool((order == torch.arange(len(order))).all()):
        return load, ids

    def ordered(name: str) -> Tensor | QuantTensor:
        weight = load(name)
        if not name.endswith("lm_head"):
            return weight
        return replace(weight, data=weight.data[order]) if isinstance(weight, QuantTensor) else weight[order]

    return ordered, ids


def _renamed(program: Program, head: Head) -> Program:
    """The program with the head's own weights under the head's name."""
    name = lambda weight: weight if weight in head.shared else f"{head.name}.{weight}"
    steps = tuple(replace(step, weights=tuple(map(name, step.weights))) for step in program.steps)
    return replace(program, steps=steps)
