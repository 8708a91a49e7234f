# SPDX-License-Identifier: Apache-2.0
"""What this machine could do at most with the weights as they are stored: reading them and the KV cache, and multiplying."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from pyspec.models.checkpoint import Checkpoint
from pyspec.models.config import weight_shapes

from .harness import measure, peaks


@dataclass(frozen=True)
class Limits:
    """One step of `batch` requests, or a prompt of `context` tokens: bytes that must be read, multiplications and additions, and the
    machine's measured rates of both (bytes/s, 1/s)."""

    context: int
    batch: int
    weight_bytes: int
    kv_bytes: int
    linear_flops: int
    head_flops: int
    attention_flops: int
    bytes_rate: float
    flops_rate: float

    def tokens_per_second(self, *, prefill: bool) -> float:
        """The nearer of the two floors."""
        if prefill:
            seen = self.context * (self.context + 1) // 2
            flops = self.context * self.linear_flops + self.head_flops + seen * self.attention_flops
            return self.context / max(self.weight_bytes / self.bytes_rate, flops / self.flops_rate)
        flops = self.batch * (self.linear_flops + self.head_flops + self.context * self.attention_flops)
        read = self.weight_bytes + self.batch * self.context * self.kv_bytes
        return self.batch / max(read / self.bytes_rate, flops / self.flops_rate)


def limits(checkpoint: Checkpoint, context: int, batch: int) -> Limits:
    """Limits of a model with a bf16 cache on this machine. Arithmetic is the faster of int8 and bf16 products."""
    config = checkpoint.config
    looked_up = () if config.tie_embeddings else ("embed",)  # of these a step reads one row a token
    size = sum(checkpoint.weight(name).data.nbytes for name in checkpoint.names() if name not in looked_up)
    products = (
        shape
        for name, shape in weight_shapes(config).items()
        if len(shape) == 2 and name not in ("embed", "lm_head")
    )
    linear = sum(2 * rows * columns for rows, columns in products)
    heads = config.num_layers * config.head_dim
    return Limits(
        context, batch, size, 2 * 2 * heads * config.num_kv_heads, linear, 2 * config.vocab_size * config.hidden_size, 4 * heads * config.num_heads,
        1e9 * peaks().read_gbps, matmul_rate(),
    )  # fmt: skip


@lru_cache(maxsize=1)
def matmul_rate() -> float:
    """Multiplications and additions a second of torch's products of 1024^3, bf16 or int8, whichever is faster here."""
    dense = torch.rand(1024, 1024).bfloat16()
    whole = torch.randint(-100, 100, (1024, 1024), dtype=torch.int8)
    times = measure({"bf16": lambda: dense @ dense, "int8": lambda: torch._int_mm(whole, whole)}, seconds=0.5)
    return 2 * 1024**3 / min(timing.p20 for timing in times.values())
