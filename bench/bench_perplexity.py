# SPDX-License-Identifier: Apache-2.0
"""Perplexity on a fixed text (the Apache licence in LICENSE): quantised weights and activations against dequantised bf16
weights, and the int8 cache against the f32 one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .harness import GateError, Options, Row, make_row

if TYPE_CHECKING:
    from pyspec.engine import LLM
    from pyspec.models.checkpoint import Checkpoint

TEXT = Path(__file__).parents[1] / "LICENSE"
WINDOW = 512  # tokens per chain
LIMIT = 0.01
LIMIT_INT8 = 0.005  # of the cache


def rows(options: Options) -> Iterator[Row]:
    """Perplexities of all and their relative differences; GateError above 1 %, above 0.5 % for the int8 cache."""
    from pyspec.engine import LLM
    from pyspec.models.checkpoint import open_checkpoint
    from pyspec.models.fetch import resolve_model

    checkpoint = open_checkpoint(resolve_model(options.model))
    windows = 1 if options.quick else 4
    make = lambda c, kv_dtype="f32": LLM(
        c,
        speculation="off",
        max_batch=WINDOW // 32,
        max_nodes=32,
        max_context=WINDOW,
        kv_dtype=kv_dtype,
        prefill_chunk=WINDOW,
    )
    quantised = make(checkpoint)
    got = perplexity(quantised, windows)
    int8 = perplexity(make(checkpoint, "int8"), windows)
    want = perplexity(make(dequantised(checkpoint)), windows)
    case, backend = f"{options.model}, {windows * WINDOW} tokens", quantised.executor_name
    yield make_row(
        "perplexity", case, backend, "perplexity", got, "", peer="dequantised bf16 weights", ratio=got / want
    )
    yield make_row("perplexity", case, backend, "perplexity_difference", 100 * (got / want - 1), "%")
    yield make_row(
        "perplexity", case, backend, "perplexity_int8_cache", int8, "", peer="f32 cache", ratio=int8 / got
    )
    if abs(int8 / got - 1) > LIMIT_INT8:
        raise GateError(
            f"perplexity: the int8 cache must change at most 0.5 %, got {100 * (int8 / got - 1):.2f} %"
        )
    if abs(got / want - 1) > LIMIT:
        raise GateError(f"perplexity: difference must be at most 1 %, got {100 * (got / want - 1):.2f} %")


def perplexity(llm: LLM, windows: int) -> float:
    """exp of the mean negative log likelihood of every token but the first of each window."""
    tokens = llm.tokenizer.encode(TEXT.read_text(encoding="utf-8"))
    loss, count = 0.0, 0
    for start in range(0, windows * WINDOW, WINDOW):
        window = tokens[start : start + WINDOW]
        logprobs = torch.log_softmax(llm.prompt_logits(window).double(), dim=1)
        loss -= float(logprobs[torch.arange(len(window) - 1), torch.tensor(window[1:])].sum())
        count += len(window) - 1
    return math.exp(loss / count)


def dequantised(checkpoint: Checkpoint) -> Checkpoint:
    """The same model with every quantised weight as dense bf16."""
    from pyspec.models.checkpoint import Checkpoint
    from pyspec.models.quant_formats import QuantTensor, dequantize
    from pyspec.models.tokenizer import Tokenizer

    class Dequantised(Checkpoint):
        path, config, chat_template = checkpoint.path, checkpoint.config, checkpoint.chat_template

        def names(self) -> tuple[str, ...]:
            return checkpoint.names()

        def weight(self, name: str) -> torch.Tensor | QuantTensor:
            weight = checkpoint.weight(name)
            return dequantize(weight).bfloat16() if isinstance(weight, QuantTensor) else weight

        def _load_tokenizer(self) -> Tokenizer:
            return checkpoint.tokenizer

    return Dequantised()
