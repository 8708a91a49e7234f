# SPDX-License-Identifier: Apache-2.0
"""Hidden states of every architecture against transformers, on every executor; taps change nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from contract_tests import native
from tiny import TINY
from torch import Tensor
from transformers import AutoModelForCausalLM

from pyspec.engine import LLM, SamplingParams
from pyspec.models.decoder import decoder

EXECUTORS = [
    "spec",
    pytest.param("compiled", marks=pytest.mark.skipif(native is None, reason="pyspec._C is not compiled")),
]
TOKENS = [1 + (7 * i * i + 3 * i) % 250 for i in range(60)]


def transformers_states(path: Path, dtype: torch.dtype) -> list[Tensor]:
    """What enters layer 0, 1, ... and the final norm (transformers' last hidden state is behind that norm)."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    entering: list[Tensor] = []
    hook = model.model.norm.register_forward_pre_hook(lambda module, args: entering.append(args[0]))
    with torch.no_grad():
        states = model(torch.tensor([TOKENS]), output_hidden_states=True).hidden_states
    hook.remove()
    return [*(state[0].double() for state in states[:-1]), entering[0][0].double()]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", sorted(TINY))
def test_hidden_states_equal_transformers(
    name: str, executor: str, tiny_model: Callable[[str], Path]
) -> None:
    """In chunks, at every layer, in any order; tolerances are those of the logits (test_parity.py)."""
    path = tiny_model(name)
    exact, low = (transformers_states(path, dtype) for dtype in (torch.float64, torch.bfloat16))
    llm = LLM(
        path, executor=executor, max_batch=1, max_nodes=4, prefill_chunk=13, max_context=64, kv_dtype="f32",
        speculation="off",
    )  # fmt: skip
    layers = [len(exact) - 1, *range(len(exact) - 1)]
    got = llm.hidden_states(TOKENS, layers)
    assert got.dtype == torch.float32
    assert got.shape == (len(TOKENS), len(layers) * exact[0].size(1))
    for layer, part in zip(layers, got.double().chunk(len(layers), 1), strict=True):
        error = (part - exact[layer]).abs().max()
        assert error <= 2 * (low[layer] - exact[layer]).abs().max() + 1e-6
        assert error <= 1e-3 * exact[layer].abs().max() + 1e-4
    assert llm.free_pages == llm.num_pages


@pytest.mark.skipif(native is None, reason="pyspec._C is not compiled")
def test_chunks_change_no_bit_and_generation_goes_on_unchanged(tiny_model: Callable[[str], Path]) -> None:
    make = lambda chunk: LLM(
        tiny_model("llama"), executor="compiled", max_batch=1, max_nodes=4, prefill_chunk=chunk, max_context=64,
        speculation="off",
    )  # fmt: skip
    one, many = make(64), make(1)
    params = SamplingParams(max_tokens=12, temperature=0)
    before = many.generate([TOKENS[:9]], params)[0].token_ids
    weights = many.memory_bytes()["weights"]
    assert torch.equal(one.hidden_states(TOKENS, [0, 1]), many.hidden_states(TOKENS, [0, 1]))
    assert many.memory_bytes()["weights"] == weights, "the program with taps holds weights of its own"
    assert many.generate([TOKENS[:9]], params)[0].token_ids == before


def test_bad_tokens_and_layers_are_refused(tiny_model: Callable[[str], Path]) -> None:
    llm = LLM(
        tiny_model("llama"), executor="spec", max_batch=1, max_nodes=4, max_context=32, num_pages=1,
        speculation="off",
    )  # fmt: skip
    for tokens in ([], [1] * 33, [320], [-1], [1] * 17):
        with pytest.raises(ValueError, match=r"^LLM.hidden_states: tokens must "):
            llm.hidden_states(tokens, [0])
    for layers in ([], [3], [-1], [1, 1]):
        with pytest.raises(ValueError, match=r"^LLM.hidden_states: layers must "):
            llm.hidden_states([1], layers)
    with pytest.raises(ValueError, match=r"^decoder: taps must be distinct layers in \[0, 2\], got \[3\]$"):
        decoder(llm.config, [3])
    assert llm.free_pages == 1


def test_a_program_without_taps_has_no_step_more(tiny_model: Callable[[str], Path]) -> None:
    llm = LLM(tiny_model("llama"), executor="spec", max_context=32, calibrate=False)
    plain, tapped = decoder(llm.config), decoder(llm.config, (0, 2))
    assert [step for step in tapped.steps if step.op != "copy"] == list(plain.steps)
    assert not any(step.op == "copy" for step in plain.steps)
