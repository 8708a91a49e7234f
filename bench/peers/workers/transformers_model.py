# SPDX-License-Identifier: Apache-2.0
"""transformers in bf16 with torch's own attention, one forward call a step."""

from __future__ import annotations

import time

import torch
from transformers import AutoModelForCausalLM

from .protocol import Decoded, Steps


class Transformers:
    """A Hugging Face folder of dense weights."""

    def load(self, model: str, threads: int, context: int, batch: int) -> str:
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        return f"weights dequantised to bf16, KV bf16, torch {torch.__version__}"

    def prefill(self, prompt: list[int]) -> float:
        begin = time.perf_counter()
        self._next(torch.tensor([prompt]), None)
        return time.perf_counter() - begin

    def decode(self, prompts: list[list[int]], steps: int) -> Decoded:
        newest, cache = self._next(torch.tensor(prompts), None)
        marks, tokens = Steps(), [newest[0, 0]]
        marks.mark()
        for _ in range(steps):
            newest, cache = self._next(newest, cache)
            tokens.append(newest[0, 0])
            marks.mark()
        return Decoded([int(token) for token in tokens], steps * len(prompts), marks.seconds())

    def _next(self, ids: torch.Tensor, cache: object) -> tuple[torch.Tensor, object]:
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1].argmax(1, keepdim=True), out.past_key_values
