# SPDX-License-Identifier: Apache-2.0
"""Perplexity of texts of this repository: quantised weights and activations against dequantised bf16 weights, and bf16 and
int8 caches against the f32 one. One text alone is too little: orders of sums alone move it by half a per cent and more."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .harness import GateError, Options, Row, make_row

if TYPE_CHECKING:
    from pyspec.engine import LLM
    from pyspec.models.checkpoint import Checkpoint

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "LICENSE"
TEXTS = (
    "LICENSE",
    "README.md",
    *(f"docs/{name}.md" for name in ("drafts", "structure", "training")),
    *(f"docs/ops/{name}.md" for name in ("linear", "sampling", "tree_attention", "verification")),
)
WINDOW = 512  # tokens per chain
CHAINS = 4  # of each text
LIMIT = 0.01
LIMIT_CACHE = 0.005


def rows(options: Options) -> Iterator[Row]:
    """Perplexities over all texts, their relative differences and the spread of these between texts.

    GateError above 1 % of difference over all texts, above 0.5 % for a cache; `quick` takes one chain of each text.
    """
    from pyspec.engine import LLM
    from pyspec.models.checkpoint import open_checkpoint
    from pyspec.models.fetch import resolve_model

    checkpoint = open_checkpoint(resolve_model(options.model))
    texts = [path for name in TEXTS if (path := ROOT / name).exists()]
    chains = 1 if options.quick else CHAINS

    def measured(model: Checkpoint, kv_dtype: str) -> tuple[list[float], str]:
        llm = LLM(
            model,
            speculation="off",
            max_batch=WINDOW // 32,
            max_nodes=32,
            max_context=WINDOW,
            kv_dtype=kv_dtype,
            prefill_chunk=WINDOW,
        )
        return [mean_loss(llm, text, chains) for text in texts], llm.executor_name

    base, backend = measured(checkpoint, "f32")
    case = f"{options.model}, {len(texts)} texts of {chains * WINDOW} tokens"
    row = lambda metric, value, unit="", **more: make_row(
        "perplexity", case, backend, metric, value, unit, **more
    )
    dense, _ = measured(dequantised(checkpoint), "f32")
    bf16, _ = measured(checkpoint, "bf16")
    int8, _ = measured(checkpoint, "int8")
    faults = []
    for name, got, want, limit in (
        ("quantised", base, dense, LIMIT),
        ("bf16_cache", bf16, base, LIMIT_CACHE),
        ("int8_cache", int8, base, LIMIT_CACHE),
    ):
        changes = [math.expm1(a - b) for a, b in zip(got, want, strict=True)]
        change = math.expm1(statistics.fmean(got) - statistics.fmean(want))
        peer = "dequantised bf16 weights" if want is dense else "f32 cache"
        value = math.exp(statistics.fmean(got))
        yield row(f"perplexity_{name}", value, peer=peer, ratio=1 + change)
        yield row(f"difference_{name}", 100 * change, "%", peer=peer)
        yield row(f"least_difference_{name}", 100 * min(changes), "%", peer=peer)
        yield row(f"largest_difference_{name}", 100 * max(changes), "%", peer=peer)
        if abs(change) > limit:
            faults.append(f"{name} must change at most {100 * limit:g} %, got {100 * change:.2f} %")
    if faults:
        raise GateError("perplexity: " + "; ".join(faults))


def perplexity(llm: LLM, windows: int) -> float:
    """exp of the mean negative log likelihood of every token but the first of each of `windows` chains of LICENSE."""
    return math.exp(mean_loss(llm, TEXT, windows))


def mean_loss(llm: LLM, text: Path, chains: int) -> float:
    """The mean negative log likelihood, in nats, of every token but the first of each of a text's first `chains` chains."""
    tokens = llm.tokenizer.encode(text.read_text(encoding="utf-8"))
    loss, count = 0.0, 0
    for start in range(0, chains * WINDOW, WINDOW):
        window = tokens[start : start + WINDOW]
        logprobs = torch.log_softmax(llm.prompt_logits(window).double(), dim=1)
        loss -= float(logprobs[torch.arange(len(window) - 1), torch.tensor(window[1:])].sum())
        count += len(window) - 1
    return loss / count


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
