# SPDX-License-Identifier: Apache-2.0
"""GGUF models: the same weights and configuration as the Hugging Face folder they stand for, and refusals."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_files import model_gguf
from tiny import tiny_checkpoint, tiny_model, tiny_tokenizer

from pyspec.models import Checkpoint, QuantTensor, dequantize, open_checkpoint
from pyspec.models.chat import chat_prompt

# tiny name -> GGUF architecture
PAIRS = {"llama-tied": "llama", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3"}
Edit = Callable[[gguf.GGUFWriter], None]


@pytest.mark.parametrize("name", PAIRS)
def test_equals_folder(name: str, tmp_path: Path) -> None:
    overrides = {"rope_parameters": None} if name == "llama" else {}  # factors are a tensor in GGUF: below
    if name == "gemma3":  # GGUF has no key for it: the scale is that of the head dimension
        overrides = {"query_pre_attn_scalar": 32, "final_logit_softcapping": None}
    folder = open_checkpoint(tiny_checkpoint(name, tmp_path / "hf", **overrides))
    file = open_checkpoint(model_gguf(tmp_path / "m.gguf", tiny_model(name, **overrides), PAIRS[name]))
    assert file.config == replace(folder.config, bos_id=None, eos_ids=())
    assert set(file.names()) == set(folder.names())
    for weight in folder.names():
        assert torch.equal(file.weight(weight), folder.weight(weight)), weight  # type: ignore[arg-type]


def test_rope_factors(tmp_path: Path) -> None:
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    extra = {"rope_freqs.weight": factors}
    checkpoint = open_checkpoint(model_gguf(tmp_path / "m.gguf", tiny_model("llama"), "llama", extra=extra))
    assert "rope_factors" in checkpoint.names()
    weight = checkpoint.weight("rope_factors")
    assert isinstance(weight, torch.Tensor)
    assert weight.tolist() == factors.tolist()


def test_quantised_rows_are_put_in_order(smollm2: Checkpoint) -> None:
    file = smollm2._file  # type: ignore[attr-defined]
    for name, tensor, heads in (("q_proj", "attn_q", 9), ("k_proj", "attn_k", 3)):
        weight = smollm2.weight(f"layers.3.{name}")
        assert isinstance(weight, QuantTensor)
        assert weight.format == "q4_1"
        rows = file.data(f"blk.3.{tensor}.weight").reshape(weight.shape[0], -1)
        values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q4_1)
        expected = values.reshape(heads, 32, 2, 576).swapaxes(1, 2).reshape(values.shape)
        assert np.array_equal(dequantize(weight).numpy(), expected)


def test_other_weights_are_views_of_the_file(smollm2: Checkpoint) -> None:
    for name in ("embed", "layers.0.v_proj", "layers.29.down_proj", "final_norm"):
        first, second = smollm2.weight(name), smollm2.weight(name)
        first, second = (w.data if isinstance(w, QuantTensor) else w for w in (first, second))
        assert first.data_ptr() == second.data_ptr()


def test_real_configurations(smollm2: Checkpoint, gemma3: Checkpoint) -> None:
    config = smollm2.config
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads) == (30, 576, 9, 3)
    assert (config.rope_theta, config.rms_eps, config.max_position) == (100000.0, 1e-5, 8192)
    assert (config.bos_id, config.eos_ids, config.tie_embeddings) == (1, (0, 2), True)
    config = gemma3.config
    assert config.layer_types == (("sliding",) * 5 + ("full",)) * 3
    assert (config.rope_theta, config.rope_local_theta, config.sliding_window) == (1e6, 1e4, 512)
    assert (config.head_dim, config.attn_scale, config.embed_scale) == (256, 1 / 16, 640**0.5)
    assert (config.bos_id, config.eos_ids) == (2, (1, 106))


def test_real_weights_match_gguf_package(gemma3: Checkpoint) -> None:
    wanted = {
        "blk.5.attn_q.weight": "layers.5.q_proj",
        "blk.5.ffn_down.weight": "layers.5.down_proj",
        "blk.17.attn_output.weight": "layers.17.o_proj",
        "blk.0.attn_v.weight": "layers.0.v_proj",
    }
    file = gemma3._file  # type: ignore[attr-defined]
    seen = set()
    for stored, name in wanted.items():
        weight = gemma3.weight(name)
        assert isinstance(weight, QuantTensor)
        rows = file.data(stored).reshape(weight.shape[0], -1)
        expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[weight.format.upper()])
        assert np.array_equal(dequantize(weight).numpy(), expected)
        seen.add(weight.format)
    assert len(seen) >= 3


def _changed(path: Path, edit: Edit, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny llama with metadata added just before the file is written."""
    write = gguf.GGUFWriter.write_header_to_file

    def edited(writer: gguf.GGUFWriter) -> None:
        edit(writer)
        write(writer)

    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", edited)
        return model_gguf(path, tiny_model("llama"), "llama")


def _drop(key: str) -> Edit:
    return lambda writer: writer.kv_data[0].pop(key)


def _replace(key: str, add: Edit) -> Edit:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0].pop(key)
        add(writer)

    return edit


REFUSED: dict[str, tuple[Edit, str]] = {
    "architecture": (
        _replace("general.architecture", lambda w: w.add_string("general.architecture", "mamba")),
        "general.architecture must be one of llama, qwen2, qwen3, gemma3, got 'mamba'",
    ),
    "missing": (_drop("llama.block_count"), "llama.block_count must be an integer, got nothing"),
    "kind": (
        _replace("llama.block_count", lambda w: w.add_string("llama.block_count", "2")),
        "llama.block_count must be an integer, got '2'",
    ),
    "layers": (
        _replace("llama.block_count", lambda w: w.add_uint32("llama.block_count", 3)),
        "blk.2.attn_norm.weight must be [64], got nothing",
    ),
    "many layers": (
        _replace("llama.block_count", lambda w: w.add_uint64("llama.block_count", 1 << 62)),
        "llama.block_count must be in [1, 1024]",
    ),
    "heads": (
        _replace("llama.attention.head_count", lambda w: w.add_uint32("llama.attention.head_count", 0)),
        "llama.attention.head_count must be at least 1, got 0",
    ),
    "width": (
        _replace("llama.embedding_length", lambda w: w.add_uint32("llama.embedding_length", 128)),
        "must be",
    ),
    "experts": (
        lambda w: w.add_expert_count(8),
        "llama.expert_count must be 0 (no mixture of experts), got 8",
    ),
    "rotary share": (
        lambda w: w.add_rope_dimension_count(8),
        "llama.rope.dimension_count must be the head dim",
    ),
    "rope type": (
        lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE),
        "llama.rope.scaling.type must be one of none, linear, yarn, got 'longrope'",
    ),
    "end token": (lambda w: w.add_eos_token_id(100000), "eos_ids must be token ids in [0, 320), got 100000"),
    "tensor": (
        lambda w: w.add_tensor("blk.0.attn_output.bias", np.zeros(64, np.float32)),
        "tensors must be those of llama, got blk.0.attn_output.bias",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit, words = REFUSED[case]
    path = _changed(tmp_path / "m.gguf", edit, monkeypatch)
    with pytest.raises(ValueError, match=rf"must be .*, got .*\(file {re.escape(str(path))}\)$") as error:
        open_checkpoint(path)
    assert words in str(error.value)


def test_yarn_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(64)
        writer.add_rope_freq_base(10000.0)
        writer.add_float32("llama.rope.scaling.yarn_beta_fast", 4.0)

    config = open_checkpoint(_changed(tmp_path / "m.gguf", yarn, monkeypatch)).config
    expected = open_checkpoint(tiny_checkpoint("llama-yarn", tmp_path / "hf")).config
    assert config.rope_scaling == expected.rope_scaling


def test_tokenizer_and_template(tmp_path: Path) -> None:
    path = model_gguf(tmp_path / "m.gguf", tiny_model("llama"), "llama", tokenizer=True)
    checkpoint, reference = open_checkpoint(path), tiny_tokenizer()
    text = "the thing<|user|> na\u00efve"
    assert checkpoint.tokenizer.encode(text) == reference.encode(text).ids
    assert checkpoint.tokenizer.special_ids == {256, 257, 258}
    assert checkpoint.template_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert (checkpoint.config.bos_id, checkpoint.config.eos_ids) == (256, (257,))
    assert chat_prompt(checkpoint, [{"role": "user", "content": "hi"}]) == "<s>hi</s>"


def test_mutated_models_open_or_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    data = model_gguf(tmp_path / "m.gguf", model, "llama", tokenizer=True).read_bytes()
    header, path, rng = data.index(b"blk.0.ffn_up.weight"), tmp_path / "mutant.gguf", random.Random(0)
    opened, mutants = 0, 600
    for _ in range(mutants):
        mutant = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            mutant[rng.randrange(24, header)] = rng.choice([0, 1, 0x20, 0x7F, 0xFF, rng.randrange(256)])
        path.write_bytes(mutant)
        try:
            checkpoint = open_checkpoint(path)
            for name in checkpoint.names():
                checkpoint.weight(name)
            checkpoint.tokenizer.decode(checkpoint.tokenizer.encode("the thing<|user|>"))
            opened += 1
        except ValueError as error:
            assert " must " in str(error)  # noqa: PT017 - any other exception fails the test by itself
    assert 0 < opened < mutants


def test_no_tokenizer_matters_only_when_asked_for(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(model_gguf(tmp_path / "m.gguf", tiny_model("qwen3"), "qwen3"))
    assert checkpoint.chat_template is None
    with pytest.raises(
        ValueError, match=r"gguf: tokenizer.ggml.model must be gpt2 or llama, got nothing \(file"
    ):
        _ = checkpoint.tokenizer
    with pytest.raises(ValueError, match=r"weight: name must be one of names\(\), got 'x'"):
        checkpoint.weight("x")
