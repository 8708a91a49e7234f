# SPDX-License-Identifier: Apache-2.0
"""EAGLE-3 heads in folders: both forms, what is written and read back, and hostile or broken folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_checkpoint
from tiny_heads import LAYER, eagle3_config, eagle3_folder, eagle3_weights, specforge_folder
from torch import Tensor

from pyspec.drafts.heads.eagle3_checkpoint import Eagle3Checkpoint, stored_name, write_eagle3
from pyspec.drafts.heads.eagle3_config import config_from_head, head_shapes
from pyspec.models import dequantize, open_checkpoint
from pyspec.models.quant_formats import QuantTensor

FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output", "own_embedding")
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize("flag", ["", *FLAGS])
@pytest.mark.parametrize(
    "layers", [{}, {"model_type": "qwen3", "num_hidden_layers": 2, "rope_scaling": LLAMA3}]
)
def test_written_and_read_back(flag: str, layers: dict[str, Any], tmp_path: Path) -> None:
    config = eagle3_config(**layers, **({flag: True} if flag else {}))
    weights, ids = eagle3_weights(config)
    head = Eagle3Checkpoint(eagle3_folder(tmp_path, config))
    assert head.config == config
    assert set(head.names()) == set(head_shapes(config))
    assert torch.equal(head.target_ids, ids)
    for name in head.names():
        assert torch.equal(head.weight(name), weights[name]), name


def test_full_vocabulary_needs_no_mapping(tmp_path: Path) -> None:
    head = Eagle3Checkpoint(eagle3_folder(tmp_path, eagle3_config(draft_vocab_size=320)))
    assert "d2t" not in load_file(tmp_path / "model.safetensors")
    assert torch.equal(head.target_ids, torch.arange(320))


def test_int8_is_q8_0(tmp_path: Path) -> None:
    config = eagle3_config()
    head, weights = Eagle3Checkpoint(eagle3_folder(tmp_path, config, int8=True)), eagle3_weights(config)[0]
    for name, shape in head_shapes(config).items():
        weight = head.weight(name)
        assert isinstance(weight, QuantTensor) == (len(shape) == 2)
        if isinstance(weight, QuantTensor):
            assert weight.format == "q8_0"
            step = weights[name].unflatten(1, (-1, 32)).abs().amax(2).max() / 127
            assert (dequantize(weight) - weights[name]).abs().max() <= 0.51 * step


def test_int8_with_a_scale_per_row(tmp_path: Path) -> None:
    head = eagle3_folder(tmp_path, eagle3_config(), int8=True)
    tensors = load_file(head / "model.safetensors")
    tensors["fc.weight_scale"] = torch.linspace(0.5, 1.5, 64)[:, None]
    save_file(tensors, head / "model.safetensors")
    got = Eagle3Checkpoint(head).weight("fc")
    assert torch.equal(got, tensors["fc.weight"].float() * tensors["fc.weight_scale"])


def test_specforge_is_the_same_head(tmp_path: Path) -> None:
    config = eagle3_config(taps=(1, 2))
    ours, theirs = (
        Eagle3Checkpoint(make(tmp_path / make.__name__, config)) for make in (eagle3_folder, specforge_folder)
    )
    assert theirs.config == config  # one layer whatever num_hidden_layers says, and taps counted from outputs
    assert all(torch.equal(ours.weight(name), theirs.weight(name)) for name in ours.names())


def test_defaults_of_the_forms() -> None:
    """A nested config lists only what differs from its class; norm_before_residual is false where nothing is said."""
    raw = {
        "speculators_model_type": "eagle3",
        "transformer_layer_config": {"model_type": "llama", "hidden_size": 2048},
    }
    config = config_from_head(raw)
    assert (config.layer.intermediate_size, config.layer.vocab_size, config.layer.num_layers) == (
        11008,
        32000,
        32,
    )
    assert (config.layer.head_dim, config.draft_vocab_size, config.target_hidden_size) == (64, 32000, 2048)
    assert not any(getattr(config, flag) for flag in FLAGS)
    assert config_from_head(
        {**raw, "transformer_layer_config": {}}
    ).layer.qk_norm  # Qwen3 where no type is said
    named = {**LAYER, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 7}
    assert config_from_head(named).taps is None
    assert config_from_head({**named, "architectures": ["LlamaForCausalLM"]}) == config_from_head(named)


def test_taps_of_a_target(tmp_path: Path) -> None:
    target = open_checkpoint(tiny_checkpoint("llama", tmp_path)).config
    assert eagle3_config().taps_of(target) == (0, 1, 2)
    assert replace(eagle3_config(), taps=None).taps_of(replace(target, num_layers=30, layer_types=("full",) * 30)) == (
        2, 15, 27,
    )  # fmt: skip
    for change, words in (
        ({"taps": None}, "distinct layers"), ({"taps": (0, 1, 3)}, "num_layers=2"), ({"vocab_size": 256}, "vocab_size"),
        ({"target_hidden_size": 32, "own_embedding": True}, "target_hidden_size must be the target's 64"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            eagle3_config(**change).taps_of(target)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"speculators_model_type": "dflash"}, "speculators_model_type must be one of eagle3"),
        ({"draft_vocab_size": 321}, r"draft_vocab_size must be an integer in \[1, vocab_size=320\]"),
        ({"draft_vocab_size": 0}, "draft_vocab_size must be"),
        ({"draft_vocab_size": "64"}, "draft_vocab_size must be an integer"),
        ({"eagle_aux_hidden_state_layer_ids": []}, "1 to 8 layers"),
        ({"eagle_aux_hidden_state_layer_ids": [0, 0]}, "ascending and distinct"),
        ({"eagle_aux_hidden_state_layer_ids": [-1, 2]}, "1 to 8 layers"),
        ({"eagle_aux_hidden_state_layer_ids": [0, True]}, "1 to 8 layers"),
        ({"norm_before_residual": 1}, "norm_before_residual must be true or false"),
        ({"norm_before_fc": True, "fc_norm": True}, "at most one of them true"),
        ({"target_hidden_size": 1 << 40}, "target_hidden_size must be"),
        ({"transformer_layer_config": None}, "transformer_layer_config must be an object"),
        ({"transformer_layer_config": {**LAYER, "model_type": "gpt_oss"}}, "model_type must be one of qwen3, llama"),
        ({"transformer_layer_config": {**LAYER, "attention_bias": True}}, "attention_bias must be False"),
        ({"transformer_layer_config": {**LAYER, "mlp_bias": True}}, "mlp_bias must be False"),
        ({"transformer_layer_config": {**LAYER, "hidden_act": "gelu"}}, "hidden_act must be one of silu"),
        ({"transformer_layer_config": {**LAYER, "hidden_size": 1 << 62}}, "hidden_size must be"),
        ({"transformer_layer_config": {**LAYER, "layer_types": ["sliding_attention"]}}, "layer_types must be"),
        ({"transformer_layer_config": {**LAYER, "rope_scaling": {"rope_type": "dynamic"}}}, "rope_type must be"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config must be int-quantized"),
    ],
)  # fmt: skip
def test_bad_configs(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    eagle3_folder(tmp_path, eagle3_config())
    described = {**json.loads((tmp_path / "config.json").read_text()), **change}
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=words) as error:
        Eagle3Checkpoint(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_other_architectures_are_refused() -> None:
    with pytest.raises(
        ValueError, match="architectures must be LlamaForCausalLMEagle3, LlamaForCausalLM with draft"
    ):
        config_from_head({**LAYER, "architectures": ["LlamaForCausalLM"]})
    flat = {**LAYER, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 64}
    with pytest.raises(ValueError, match="use_aux_hidden_state must be true"):
        config_from_head({**flat, "eagle_config": {"use_aux_hidden_state": False}})


def _ids(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update(d2t=change(tensors["d2t"]))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop("fc.weight"), r"fc.weight must be \[64, 192\], got nothing"),
        (lambda t: t.update({"fc.weight": torch.zeros(64, 128)}), r"fc.weight must be \[64, 192\]"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(320, 64)}), r"lm_head.weight must be \[64, 64\]"),
        (lambda t: t.update({"norm.weight": torch.zeros(64).double()}), "norm.weight must be F32"),
        (lambda t: t.update({"norm.weight": torch.zeros(64, dtype=torch.int8)}), "norm.weight must be F32"),
        (lambda t: t.update({"fc.weight": torch.zeros(64, 192, dtype=torch.int8)}), "fc.weight_scale must be the scales"),
        (lambda t: t.update({"layers.1.mlp.up_proj.weight": torch.zeros(1)}), "tensors must be weights of an EAGLE-3"),
        (lambda t: t.update({"input_norm.weight": torch.ones(192)}), "tensors must be weights of an EAGLE-3"),
        (lambda t: t.pop("d2t"), "d2t must be present where draft_vocab_size=64 is below"),
        (_ids(lambda d: d.float()), "d2t must be I64"),
        (_ids(lambda d: d[1:]), r"d2t must be \[64\]"),
        (_ids(lambda d: d - 1000), "d2t must be offsets from draft ids to target ids"),
        (_ids(lambda d: d.fill_(2**63 - 1)), "d2t must be offsets from draft ids to target ids"),
        (_ids(lambda d: -torch.arange(64)), "d2t must be offsets to 64 distinct target ids, got 1"),
        (lambda t: t.update(t2d=~t["t2d"]), "t2d must be true exactly at the target ids"),
        (lambda t: t.update(t2d=t["t2d"][1:].clone()), r"t2d must be \[320\]"),
        (lambda t: t.update(t2d=t["t2d"].long()), "t2d must be BOOL"),
    ],
)  # fmt: skip
def test_bad_tensors(edit: Callable[[dict[str, Tensor]], None], words: str, tmp_path: Path) -> None:
    eagle3_folder(tmp_path, eagle3_config())
    tensors = load_file(tmp_path / "model.safetensors")
    edit(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=words) as error:
        Eagle3Checkpoint(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_bad_scales(tmp_path: Path) -> None:
    eagle3_folder(tmp_path, eagle3_config(), int8=True)
    tensors = load_file(tmp_path / "model.safetensors")
    for scale in (torch.ones(64), torch.ones(64, 5), torch.ones(63, 6), torch.ones(64, 6).double()):
        save_file({**tensors, "fc.weight_scale": scale}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="fc.weight_scale must be"):
            Eagle3Checkpoint(tmp_path)


def test_truncated_and_pickled(tmp_path: Path) -> None:
    eagle3_folder(tmp_path, eagle3_config())
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    for size in (0, 7, 100, len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(ValueError, match="must be a safetensors file"):
            Eagle3Checkpoint(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match="model.safetensors must be a file in the folder"):
        Eagle3Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="a pickle can run any code"):
        Eagle3Checkpoint(tmp_path)


def test_writer_checks_what_it_is_given(tmp_path: Path) -> None:
    config = eagle3_config()
    weights, ids = eagle3_weights(config)
    bad = [
        ({name: w for name, w in weights.items() if name != "fc"}, ids, "weights must be"),
        ({**weights, "fc": weights["fc"].T}, ids, r"fc must be \[64, 192\]"),
        (weights, ids.flip(0), "ascending ids"),
        (weights, ids[1:], "ascending ids"),
        (weights, ids + 320, "ascending ids"),
    ]
    for changed, changed_ids, words in bad:
        with pytest.raises(ValueError, match=words):
            write_eagle3(tmp_path, config, changed, changed_ids, verifier="tiny")


def test_names_in_checkpoints() -> None:
    assert stored_name("layers.0.embed_norm") == "layers.0.input_layernorm.weight"
    assert stored_name("layers.0.hidden_norm", "midlayer") == "midlayer.hidden_norm.weight"
    assert stored_name("layers.1.attn_norm") == "layers.1.input_layernorm.weight"
    assert stored_name("fc_norm.2") == "fc_norm.2.weight"
    assert stored_name("final_norm") == "norm.weight"
