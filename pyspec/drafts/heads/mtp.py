# SPDX-License-Identifier: Apache-2.0
"""MTP modules (multi-token prediction, DeepSeek-V3, arXiv 2412.19437): one decoder layer behind the target, as step programs.

Entry j pairs the target's last hidden state (behind its final norm) of position j with the token at position j + 1:

    x = input_proj [token_norm(E(token)); hidden_norm(hidden)]     or the other way round
    h = head_norm(layer(x));  logits = the target's LM head of h: what the token at position j + 2 may be

The next step takes h, or the layer's output without head_norm, in place of the hidden state. Embedding and LM head are the target's.

Four sets of names are known: those of speculators ("mtp" checkpoints), and, in the target's own folder, those of Qwen3-Next
(mtp.*), MiMo (model.mtp_layers.0.*) and DeepSeek (model.layers.N.*, N the target's number of layers). The layer must be one that
targets of this package have: no experts, no latent or gated attention.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pyspec.drafts.heads.eagle3_config import head_layer
from pyspec.models.config import ModelConfig, weight_shapes
from pyspec.models.decoder import attention, feed_forward, normalise
from pyspec.models.fields import Fields, require
from pyspec.models.hf import LAYER_NAMES
from pyspec.models.program import Program, Tracer, columns
from pyspec.models.safetensors_folder import FLOATS, check_tensor, open_tensors, read_json

_KINDS = ("qwen2", "qwen3", "llama")  # model_type of the layer; the first where none is stated


@dataclass(frozen=True)
class Form:
    """How one family writes its module: names of its weights; what comes first in the projection; what the next step takes."""

    layer: str
    input_proj: str
    token_norm: str
    hidden_norm: str
    head_norm: str
    token_first: bool = True
    norm_output: bool = True

    def name(self, weight: str) -> str:
        """The name in a checkpoint of the weight with this canonical name (see mtp_shapes)."""
        part = weight.removeprefix("layers.0.")
        name: str = getattr(self, weight) if part == weight else self.layer + LAYER_NAMES[part]
        return name


def _own(root: str, token_first: bool) -> Form:
    name = lambda part: f"{root}{part}.weight"
    norms = (name("token_layernorm"), name("hidden_layernorm"), name("final_layernorm"))
    return Form(root, name("input_proj"), *norms, token_first)


def deepseek(layers: int) -> Form:
    """Names behind a target of so many layers."""
    root = f"model.layers.{layers}."
    name = lambda part: f"{root}{part}.weight"
    return Form(
        root, name("eh_proj"), name("enorm"), name("hnorm"), name("shared_head.norm"), norm_output=False
    )


SPECULATORS, MIMO = _own("mtp_layers.0.", True), _own("model.mtp_layers.0.", False)
QWEN = Form(
    "mtp.layers.0.", "mtp.fc.weight", "mtp.pre_fc_norm_embedding.weight", "mtp.pre_fc_norm_hidden.weight", "mtp.norm.weight"
)  # fmt: skip


class MtpCheckpoint:
    """An open MTP module of a target with this configuration: every weight has been found with its shape.

    path: a folder of speculators, or the target's own. ValueError for a module that the layers of this package cannot compute.
    """

    def __init__(self, path: str | os.PathLike[str], target: ModelConfig) -> None:
        self.path, self.target = Path(path), target
        self._where = f"mtp {self.path}"
        raw = read_json(self.path / "config.json")
        self._stored = open_tensors(self.path)
        if "speculators_model_type" in raw:
            self.layer, self.form = _speculators_layer(raw, self._where), SPECULATORS
        else:
            self.layer, self.form = _native_layer(raw, target, self._where), self._native_form()
        for name in ("vocab_size", "hidden_size"):
            ours, theirs = getattr(self.layer, name), getattr(target, name)
            require(ours == theirs, name, f"the target's {theirs}", ours, self._where)
        self._names = self._find_weights()

    def names(self) -> tuple[str, ...]:
        """Canonical names of the weights that are the module's own."""
        return tuple(self._names)

    def weight(self, name: str) -> Tensor:
        """One weight as stored (f32, f16 or bf16)."""
        require(name in self._names, "name", "one of names()", name, "weight")
        stored = self._names[name]
        tensor: Tensor = self._stored[stored].get_tensor(stored)
        return tensor

    def _native_form(self) -> Form:
        forms = (QWEN, MIMO, deepseek(self.target.num_layers))
        found = next((form for form in forms if form.input_proj in self._stored), None)
        rule = f"one of {', '.join(form.input_proj for form in forms)}"
        require(found is not None, "tensors", rule, None, self._where)
        assert found is not None
        return found

    def _find_weights(self) -> dict[str, str]:
        hidden, found = self.layer.hidden_size, {}
        for name, shape in mtp_shapes(self.layer).items():
            found[name] = self.form.name(name)
            check_tensor(self._stored, found[name], shape, FLOATS, self._where)
        # The target's, which some forms repeat in the module.
        shared = {f"{self.form.layer}{name}.weight" for name in ("embed_tokens", "shared_head.head")}
        known = {*found.values(), *shared}
        for stored in self._stored:
            rule = f"weights of one {self.layer.architecture} layer of {hidden} columns"
            require(
                not stored.startswith(self.form.layer) or stored in known,
                "tensors",
                rule,
                stored,
                self._where,
            )
        return found


def mtp_shapes(layer: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every weight of a module (matrices are [N, K])."""
    hidden = layer.hidden_size
    norms: dict[str, tuple[int, ...]] = dict.fromkeys(("token_norm", "hidden_norm", "head_norm"), (hidden,))
    block = {name: shape for name, shape in weight_shapes(layer).items() if name.startswith("layers.")}
    return {"input_proj": (hidden, 2 * hidden), **norms, **block}


def mtp_program(layer: ModelConfig, target: ModelConfig, form: Form, from_features: bool) -> Program:
    """Trace one step of the module: T entries in, logits [R, vocabulary] of the rows that the batch asks for out.

    Tokens and positions are as in eagle3_program. The one input is [T, hidden]: what enters the target's final norm
    (from_features), or else the output of the entries before. That is the one output.
    """
    trace, hidden, eps = Tracer(), layer.hidden_size, layer.rms_eps
    embedded = trace.op("embedding", (), trace.buffer("embedded", hidden), "embed", scale=target.embed_scale)
    given = trace.buffer("given", hidden)
    if from_features:
        trace.op("rms_norm", (given,), given, "final_norm", eps=target.rms_eps)
    wide = trace.buffer("wide", 2 * hidden)
    place = 0 if form.token_first else hidden
    trace.op("rms_norm", (embedded,), columns(wide, place, hidden), "token_norm", eps=eps)
    trace.op("rms_norm", (given,), columns(wide, hidden - place, hidden), "hidden_norm", eps=eps)
    x = trace.op("linear", (wide,), trace.buffer("x", hidden), "input_proj", parts=1)
    delta = attention(trace, layer, 0, normalise(trace, layer, x, None, "layers.0.attn_norm"))
    delta = feed_forward(trace, layer, 0, normalise(trace, layer, x, delta, "layers.0.mlp_norm"))
    h = normalise(trace, layer, x, delta, "head_norm")
    rows = trace.op("gather_rows", (h,), trace.buffer("rows", hidden, "R"))
    head = "embed" if target.tie_embeddings else "lm_head"
    logits = trace.op("linear", (rows,), trace.buffer("logits", target.vocab_size, "R"), head, parts=1)
    if target.logit_softcap:
        trace.op("softcap", (logits,), logits, cap=target.logit_softcap)
    return trace.program(logits, inputs=(given,), outputs=(h if form.norm_output else x,))


def _speculators_layer(raw: Mapping[str, Any], where: str) -> ModelConfig:
    fields = Fields(where, raw)
    fields.choice("speculators_model_type", ("mtp",))
    modules = fields.integer("num_nextn_predict_layers", 1)
    require(modules == 1, "num_nextn_predict_layers", "1", modules, where)
    nested = fields.mapping("transformer_layer_config")
    whole = {
        key: value for key, value in nested.items() if key != "layer_types"
    }  # those of the target's layers
    return head_layer({**whole, "num_hidden_layers": 1, "use_sliding_window": False}, _KINDS)


def _native_layer(raw: Mapping[str, Any], target: ModelConfig, where: str) -> ModelConfig:
    """A layer like the target's, with full attention."""
    text = Fields(where, raw).mapping("text_config", dict(raw))
    modules = Fields(where, text).integer("num_nextn_predict_layers", 1)
    require(modules == 1, "num_nextn_predict_layers", "1", modules, where)
    require(not target.post_norms, "target", "without norms behind its blocks", target.architecture, where)
    return replace(target, num_layers=1, layer_types=("full",), sliding_window=0, tie_embeddings=False)
