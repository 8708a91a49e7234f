# SPDX-License-Identifier: Apache-2.0
"""A model that answers by a fixed rule, so that the command line is tested without weights."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

from pyspec.engine import RequestStats, SamplingParams, StreamChunk

WORDS = ("Herring", " boats", " sail", " north", ".")


class FakeLLM:
    """Streams WORDS. `made` are the instances of a test, newest last; `differing` breaks the promise of equality."""

    made: list[FakeLLM] = []
    differing = False
    template: str | None = "a chat template"
    error: Exception | None = None
    interrupt_after: int | None = None
    failing: int | None = None  # the sample that ends with an error

    def __init__(self, model: str, **settings: object) -> None:
        self.settings = {"model": model, **settings}
        self.executor_name = "fake/isa"
        self.checkpoint = SimpleNamespace(chat_template=self.template)
        self.prompts: list[tuple[str, SamplingParams]] = []
        self.closed = 0
        type(self).made.append(self)

    def chat_prompt(self, messages: list[dict[str, str]], add_generation_prompt: bool = True) -> list[int]:
        return [ord(c) for m in messages for c in f"<{m['role']}>{m['content']}"]

    def stream(self, prompt: str | list[int], params: SamplingParams) -> Iterator[StreamChunk]:
        if self.error is not None:
            raise self.error
        text = prompt if isinstance(prompt, str) else "".join(map(chr, prompt))
        self.prompts.append((text, params))
        return self._stream(params)

    def _stream(self, params: SamplingParams) -> Iterator[StreamChunk]:
        words = list(WORDS[: params.max_tokens])
        if self.differing and params.speculation == "off":
            words[-1] = "!"
        stats = RequestStats(
            prompt_tokens=7, output_tokens=len(words), prefill_seconds=0.5, decode_seconds=2.0, steps=2,
            drafted_nodes=9, mean_accepted_length=2.0, tokens_per_second=2.0,
        )  # fmt: skip
        samples = range(params.n)
        try:
            for i, word in enumerate(words):
                if i == self.interrupt_after:
                    raise KeyboardInterrupt
                last = i + 1 == len(words)
                for sample in samples:
                    error = "no token is left" if last and self.failing == sample else None
                    reason = "error" if error else "eos" if last else None
                    logprobs = [-0.5 * i] if params.logprobs is not None else None
                    yield StreamChunk(
                        word,
                        [i],
                        reason,
                        stats if last else None,
                        error,
                        sample_index=sample,
                        logprobs=logprobs,
                    )
        finally:
            self.closed += 1
