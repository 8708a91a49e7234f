# SPDX-License-Identifier: Apache-2.0
"""vLLM's CPU build in bf16, its engine stepped in this process."""

from __future__ import annotations

import itertools
import time

import vllm

from .protocol import Decoded, Steps


class Vllm:
    """A Hugging Face folder of dense weights."""

    def load(self, model: str, threads: int, context: int, batch: int) -> str:
        self.engine = vllm.LLM(
            model=model, dtype="bfloat16", max_model_len=context, max_num_seqs=batch, skip_tokenizer_init=True,
            max_num_batched_tokens=max(context, 128 * batch), enable_prefix_caching=False, disable_log_stats=True,
        ).llm_engine  # fmt: skip
        self.names = itertools.count()
        return f"weights dequantised to bf16, KV bf16, vLLM {vllm.__version__}"

    def prefill(self, prompt: list[int]) -> float:
        begin = time.perf_counter()
        self._run([prompt], 1, Steps())
        return time.perf_counter() - begin

    def decode(self, prompts: list[list[int]], steps: int) -> Decoded:
        marks = Steps()
        tokens = self._run(prompts, steps + 1, marks)
        return Decoded(tokens, steps * len(prompts), marks.seconds())

    def _run(self, prompts: list[list[int]], count: int, marks: Steps) -> list[int]:
        """All prompts fit one step, so every step gives each request one token."""
        params = vllm.SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        names = [str(next(self.names)) for _ in prompts]
        for name, prompt in zip(names, prompts, strict=True):
            self.engine.add_request(name, {"prompt_token_ids": prompt}, params)
        tokens: list[int] = []
        while self.engine.has_unfinished_requests():
            outputs = self.engine.step()
            if outputs:
                marks.mark()
            for output in outputs:
                if output.request_id == names[0]:
                    tokens = list(output.outputs[0].token_ids)
        return tokens
