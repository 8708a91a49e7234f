# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: every weight of every architecture, sharding, and hostile or broken folders."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY, tiny_checkpoint, tiny_model

from pyspec.models import ModelConfig, open_checkpoint, weight_shapes
from pyspec.models.hf import HFCheckpoint


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hf")
    return {name: tiny_checkpoint(name, root / name) for name in TINY}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return tiny_checkpoint("llama", tmp_path / "llama")


@pytest.mark.parametrize("architecture", TINY)
def test_every_weight(architecture: str, folders: dict[str, Path]) -> None:
    checkpoint, state = open_checkpoint(folders[architecture]), tiny_model(architecture).state_dict()
    names = set(checkpoint.names())
    assert names == set(weight_shapes(checkpoint.config))
    used = []
    for name in names:
        stored = checkpoint._weights[name]  # type: ignore[attr-defined]
        used.append(stored)
        shift = 1.0 if architecture == "gemma3" and "norm" in name else 0.0
        weight = checkpoint.weight(name)
        assert isinstance(weight, torch.Tensor)
        assert torch.equal(weight, state[stored] + shift)
    tied = {"lm_head.weight"} if checkpoint.config.tie_embeddings else set()
    assert set(used) == set(state) - tied


def _expected(architecture: str) -> dict[str, Any]:
    return {
        "llama": {"layer_types": ("full", "full"), "rope_theta": 10000.0, "tie_embeddings": False},
        "llama-tied": {"head_dim": 32, "tie_embeddings": True, "rope_scaling": None},
        "llama-yarn": {"sliding_window": 0},
        "mistral": {"architecture": "mistral", "layer_types": ("sliding", "sliding"), "sliding_window": 8},
        "qwen2": {"qkv_bias": True, "layer_types": ("full", "full"), "qk_norm": False},
        "qwen2-sliding": {"layer_types": ("full", "sliding"), "sliding_window": 8},
        "qwen3": {"qk_norm": True, "head_dim": 32, "qkv_bias": False},
        "qwen3-mqa": {"qk_norm": True, "head_dim": 32, "num_kv_heads": 1},
        "gemma3": {
            "layer_types": ("sliding", "full") * 2,
            "post_norms": True,
            "embed_scale": 8.0,
            "attn_scale": 24**-0.5,
            "logit_softcap": 30.0,
            "rope_theta": 1e6,
            "rope_local_theta": 1e4,
            "activation": "gelu_tanh",
        },
    }[architecture]


@pytest.mark.parametrize("architecture", TINY)
def test_config(architecture: str, folders: dict[str, Path]) -> None:
    config: ModelConfig = open_checkpoint(folders[architecture]).config
    common = {"hidden_size": 64, "num_heads": 4, "num_kv_heads": 2, "vocab_size": 320, "max_position": 256}
    for field, value in {**common, "bos_id": 256, "eos_ids": (257,), **_expected(architecture)}.items():
        assert getattr(config, field) == value, field


def test_sharded_equals_single(tmp_path: Path, folders: dict[str, Path]) -> None:
    sharded = tiny_checkpoint("llama", tmp_path / "shards", max_shard_size="60KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    ours, single = open_checkpoint(sharded), open_checkpoint(folders["llama"])
    assert ours.config == single.config
    for name in single.names():
        assert torch.equal(ours.weight(name), single.weight(name))  # type: ignore[arg-type]


def test_multimodal_layouts(tmp_path: Path, folders: dict[str, Path]) -> None:
    state = load_file(folders["gemma3"] / "model.safetensors")
    text = json.loads((folders["gemma3"] / "config.json").read_text())
    outer = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": text, "eos_token_id": [257]}
    plain = open_checkpoint(folders["gemma3"])
    for i, root in enumerate(("language_model.model.", "model.language_model.")):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(outer))
        moved = {name.replace("model.", root, 1): weight for name, weight in state.items()}
        save_file({**moved, "vision_tower.x": torch.zeros(1)}, folder / "model.safetensors")
        checkpoint = open_checkpoint(folder)
        assert checkpoint.config == plain.config
        for name in plain.names():
            assert torch.equal(checkpoint.weight(name), plain.weight(name))  # type: ignore[arg-type]


def test_bf16_stays_bf16_and_views_the_file(llama: Path) -> None:
    state = {name: weight.bfloat16() for name, weight in load_file(llama / "model.safetensors").items()}
    save_file(state, llama / "model.safetensors")
    weight = open_checkpoint(llama).weight("embed")
    assert isinstance(weight, torch.Tensor)
    assert weight.dtype == torch.bfloat16


def _refused(folder: Path, words: str) -> None:
    with pytest.raises(ValueError, match=r"(must be|must hold)") as error:
        HFCheckpoint(folder)
    assert words in str(error.value), str(error.value)
    assert str(folder) in str(error.value)


def _edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_refuses_wrong_weights(llama: Path) -> None:
    path = llama / "model.safetensors"
    state = load_file(path)
    name = "model.layers.1.mlp.down_proj.weight"
    save_file({**state, name: state[name].T.contiguous()}, path)
    _refused(llama, f"{name} must be [64, 96], got [96, 64]")
    save_file({**state, name: state[name].double()}, path)
    _refused(llama, f"{name} must be F32 or F16 or BF16, got 'F64'")
    save_file({key: value for key, value in state.items() if key != name}, path)
    _refused(llama, f"{name} must be [64, 96], got nothing")
    save_file({**state, "model.layers.0.self_attn.o_proj.bias": torch.zeros(64)}, path)
    _refused(llama, "tensors must be weights of llama, got 'model.layers.0.self_attn.o_proj.bias'")
    save_file({**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}, path)
    open_checkpoint(llama)


def test_refuses_broken_safetensors(llama: Path) -> None:
    path = llama / "model.safetensors"
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    lies = {
        "empty": b"",
        "cut": data[: len(data) // 2],
        "cut header": data[:40],
        "huge header": (1 << 62).to_bytes(8, "little") + data[8:],
        "not JSON": data[:8] + b"x" * header + data[8 + header :],
        "offsets": data.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1),
        "shape": data.replace(b'"shape":[320,64]', b'"shape":[999,64]', 1),
    }
    for lie in lies.values():
        path.write_bytes(lie)
        _refused(llama, f"{path} must be a safetensors file")
    path.unlink()
    _refused(llama, "model.safetensors must be a file in the folder")


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", ".hidden.safetensors", "a\0.safetensors", 7, None,
     "..", "model.safetensors\n", "model.bin"],
)  # fmt: skip
def test_refuses_hostile_shard_names(llama: Path, shard: object) -> None:
    index = {"weight_map": {"model.embed_tokens.weight": shard}}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    _refused(llama, "must be a plain *.safetensors name in the folder")


def test_refuses_lying_index(llama: Path) -> None:
    index = llama / "model.safetensors.index.json"
    for text, words in (
        ("[]", "must be a JSON object"),
        ("{}", "weight_map must be an object, got nothing"),
        (
            '{"weight_map": {"x": "model.safetensors"}}',
            "x must be a tensor of model.safetensors, got nothing",
        ),
        ('{"weight_map": {"x": "gone.safetensors"}}', "gone.safetensors must be a file in the folder"),
        ('{"weight_map": {"x": ["model.safetensors"]}}', "must be a plain"),
    ):
        index.write_text(text)
        _refused(llama, words)


def test_refuses_broken_config(llama: Path) -> None:
    path = llama / "config.json"
    good = path.read_text()
    for text in ("", "{", "[" * 100000, "\xff", '{"hidden_size": ' + "9" * 5000 + "}"):
        path.write_text(text, encoding="latin-1")
        _refused(llama, "must be JSON")
    path.write_text(good)
    _edit(llama, num_hidden_layers=3)
    _refused(llama, "model.layers.2.input_layernorm.weight must be [64], got nothing")
    _edit(llama, num_hidden_layers=2, vocab_size=321)
    _refused(llama, "model.embed_tokens.weight must be [321, 64], got [320, 64]")
    path.unlink()
    _refused(llama, "file must be present")


def test_unknown_path_and_name(tmp_path: Path, llama: Path) -> None:
    missing = tmp_path / "nowhere"
    words = f"open_checkpoint: path must be a GGUF file or a model folder, got '{missing}'"
    with pytest.raises(FileNotFoundError, match=re.escape(words)):
        open_checkpoint(missing)
    with pytest.raises(ValueError, match=r"weight: name must be one of names\(\), got 'lm_hat'"):
        open_checkpoint(llama).weight("lm_hat")


def test_missing_tokenizer_matters_only_when_asked_for(llama: Path) -> None:
    (llama / "tokenizer.json").unlink()
    checkpoint = open_checkpoint(llama)
    assert checkpoint.weight("embed").shape == (320, 64)
    with pytest.raises(ValueError, match=r"tokenizer: tokenizer.json must be a file, got"):
        _ = checkpoint.tokenizer
    (llama / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match=r"tokenizer: .*tokenizer.json must be a tokenizer.json, got"):
        _ = checkpoint.tokenizer


def test_templates_and_tokens(llama: Path) -> None:
    config = llama / "tokenizer_config.json"
    assert open_checkpoint(llama).chat_template is None
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    for template, expected in (("S", "S"), (named, "D"), ([], None), (3, None)):
        config.write_text(
            json.dumps({"chat_template": template, "bos_token": {"content": "<s>"}, "eos_token": "</s>"})
        )
        checkpoint = open_checkpoint(llama)
        assert checkpoint.chat_template == expected
        assert checkpoint.template_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    (llama / "chat_template.jinja").write_text("J")
    assert open_checkpoint(llama).chat_template == "J"


def test_generation_config_adds_end_tokens(llama: Path) -> None:
    (llama / "generation_config.json").write_text('{"eos_token_id": [258, 257]}')
    assert open_checkpoint(llama).config.eos_ids == (257, 258)
    (llama / "generation_config.json").write_text('{"eos_token_id": 4000}')
    _refused(llama, "eos_ids must be token ids in [0, 320), got 4000")
