# SPDX-License-Identifier: Apache-2.0
"""llama.cpp by the C interface of llama-cpp-python: nothing of its slower Python classes stands between."""

from __future__ import annotations

import time

import llama_cpp
import numpy as np

from .protocol import Decoded, Steps

CHUNK = 2048  # tokens a call at most
NO_FLASH_ATTENTION = 0  # on CPUs without AMX and with it the faster kind at a context of 2048


class LlamaCpp:
    """A GGUF file as it is, KV in f16."""

    def load(self, model: str, threads: int, context: int, batch: int) -> str:
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(
            model.encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch = context * batch, batch, CHUNK
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = NO_FLASH_ATTENTION
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)
        found = llama_cpp.llama_print_system_info().decode()
        parts = [
            part.split("=")[0].strip().split(" : ")[-1]
            for part in found.split("|")
            if part.strip().endswith("= 1")
        ]
        return f"GGUF weights as they are, KV f16, no flash attention, built with {' '.join(parts)}"

    def prefill(self, prompt: list[int]) -> float:
        self._forget()
        begin = time.perf_counter()
        self._run([(token, i, 0, i == len(prompt) - 1) for i, token in enumerate(prompt)])
        self._best(len(prompt) - 1)
        return time.perf_counter() - begin

    def decode(self, prompts: list[list[int]], steps: int) -> Decoded:
        self._forget()
        newest, marks, tokens = [], Steps(), []
        for sequence, prompt in enumerate(prompts):
            for start in range(0, len(prompt), CHUNK):
                part = prompt[start : start + CHUNK]
                last = start + len(part) == len(prompt)
                self._run([(t, start + i, sequence, last and i == len(part) - 1) for i, t in enumerate(part)])
            newest.append(self._best(len(part) - 1))
        marks.mark()
        for step in range(steps):
            tokens.append(newest[0])
            self._run([(t, len(prompts[0]) + step, sequence, True) for sequence, t in enumerate(newest)])
            newest = [self._best(i) for i in range(len(newest))]
            marks.mark()
        return Decoded([*tokens, newest[0]], steps * len(prompts), marks.seconds())

    def _forget(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)

    def _run(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """One call for rows of (token, position, sequence, whether its logits are wanted)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if code := llama_cpp.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returned {code}")

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax())
