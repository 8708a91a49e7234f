# SPDX-License-Identifier: Apache-2.0
"""pyspec's own engine as a worker, without and with speculation, so that it is measured just as its peers are."""

from __future__ import annotations

import time

from pyspec import backends
from pyspec.cli.options import set_threads
from pyspec.engine import LLM, SamplingParams
from pyspec.engine.statistics import StepRecord

from .protocol import Decoded, Steps

PREFILL_CHUNK = 128  # LLM's own


class Together:
    """Observes the steps in which all requests decode and none reads its prompt."""

    wants_logprobs = False

    def __init__(self, batch: int, steps: int) -> None:
        self.batch, self.steps = batch, steps
        self.marks, self.count, self._seen = Steps(), 0, 0

    def record(self, record: StepRecord) -> None:
        """Told once a request and step; the first whole step starts the clock."""
        if record.batch < self.batch or record.prompt_tokens or len(self.marks.times) > self.steps:
            return
        if self.marks.times:
            self.count += len(record.emitted)
        self._seen += 1
        if self._seen % self.batch == 0:
            self.marks.mark()


class Plain:
    """One token a step."""

    speculation = "off"

    def load(self, model: str, threads: int, context: int, batch: int) -> str:
        set_threads(threads)
        self.llm = LLM(
            model,
            speculation=self.speculation,
            max_batch=batch,
            max_context=context,
            prefill_chunk=PREFILL_CHUNK,
        )
        isa = backends.native.cpu_isa() if backends.native is not None else "specification"
        return f"GGUF weights as they are, KV bf16, {isa}, speculation {self.speculation}"

    def prefill(self, prompt: list[int]) -> float:
        begin = time.perf_counter()
        self.llm.generate([prompt], SamplingParams(max_tokens=1, ignore_eos=True))
        return time.perf_counter() - begin

    def decode(self, prompts: list[list[int]], steps: int) -> Decoded:
        if len(prompts) > 1:
            more = (
                sum(map(len, prompts)) // PREFILL_CHUNK + 2
            )  # the first prompts decode while the last ones come in
            together = Together(len(prompts), steps)
            params = SamplingParams(max_tokens=steps + more, ignore_eos=True)
            with self.llm.observed_by(together):
                done = self.llm.generate(prompts, params)
            return Decoded(done[0].token_ids, together.count, together.marks.seconds())
        marks, tokens = Steps(), []
        for chunk in self.llm.stream(prompts[0], SamplingParams(max_tokens=steps + 1, ignore_eos=True)):
            if chunk.token_ids:
                marks.mark()
                tokens += chunk.token_ids
        return Decoded(tokens, len(tokens) - 1, marks.seconds())


class Auto(Plain):
    """Suffix trees where they pay."""

    speculation = "auto"
