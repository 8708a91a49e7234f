# SPDX-License-Identifier: Apache-2.0
"""OpenVINO GenAI's pipeline on a GGUF file, with its continuous batching and without its prefix cache."""

from __future__ import annotations

import time

import numpy as np
import openvino as ov
import openvino_genai as genai

from .protocol import Decoded


class OpenVino:
    """A GGUF file; weights and KV in whatever the CPU plugin makes of them."""

    def load(self, model: str, threads: int, context: int, batch: int) -> str:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = max(context, 128 * batch)
        scheduler.max_num_seqs = batch
        scheduler.cache_size = 1
        self.pipeline = genai.LLMPipeline(
            model, "CPU", scheduler_config=scheduler, INFERENCE_NUM_THREADS=threads
        )
        return f"GGUF weights, KV as the CPU plugin chooses, OpenVINO {ov.__version__}"

    def prefill(self, prompt: list[int]) -> float:
        begin = time.perf_counter()
        self._generate([prompt], 1)
        return time.perf_counter() - begin

    def decode(self, prompts: list[list[int]], steps: int) -> Decoded:
        result = self._generate(prompts, steps + 1)
        times = result.perf_metrics.raw_metrics.m_new_token_times  # ms, one a step
        seconds = [(b - a) / 1e3 for a, b in zip(times, times[1:], strict=False)]
        return Decoded(list(result.tokens[0]), steps * len(prompts), seconds)

    def _generate(self, prompts: list[list[int]], count: int) -> genai.EncodedResults:
        ids = np.array(prompts, np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
        config = genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        return self.pipeline.generate(inputs, config)
