# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime GenAI on a folder that its own builder made."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai

from .protocol import Decoded, Steps


class OnnxRuntime:
    """int4 weights in blocks of 32, int8 arithmetic (accuracy level 4)."""

    def load(self, model: str, threads: int, context: int, batch: int) -> str:
        session = {"intra_op_num_threads": threads}
        config = genai.Config(model)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = genai.Model(config)
        self.context = context
        io = json.loads((Path(model) / "genai_config.json").read_text(encoding="utf-8"))
        self.vocab_size = io["model"]["vocab_size"]
        return f"dequantised weights, int4 again by its builder (blocks of 32, accuracy level 4), ONNX Runtime GenAI {genai.__version__}"

    def prefill(self, prompt: list[int]) -> float:
        begin = time.perf_counter()
        self._start([prompt])
        return time.perf_counter() - begin

    def decode(self, prompts: list[list[int]], steps: int) -> Decoded:
        generator = self._start(prompts)
        marks, tokens = Steps(), [generator.get_next_tokens()[0]]
        marks.mark()
        for _ in range(steps):
            generator.generate_next_token()
            tokens.append(generator.get_next_tokens()[0])
            marks.mark()
        return Decoded([int(token) for token in tokens], steps * len(prompts), marks.seconds())

    def _start(self, prompts: list[list[int]]) -> genai.Generator:
        """A generator that has read the prompts and has their first tokens."""
        params = genai.GeneratorParams(self.model)
        params.set_search_options(
            max_length=self.context, min_length=self.context, batch_size=len(prompts), do_sample=False
        )
        generator = genai.Generator(self.model, params)
        generator.append_tokens(np.array(prompts, np.int32))
        generator.generate_next_token()
        return generator
