# SPDX-License-Identifier: Apache-2.0
"""LLM: a model that answers. Loads a checkpoint, owns the KV cache, and runs requests through the step loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from pyspec.backends import num_threads
from pyspec.engine.admission import Admission, Prompt, stream_decoder
from pyspec.engine.batch import StepBatch, Work
from pyspec.engine.costs import CostMeter
from pyspec.engine.draft_choice import DraftSpec, Target, add_rope_tables, default_policy, make_drafts
from pyspec.engine.drawn import check_drafts
from pyspec.engine.executor import (
    Weights,
    check_kv_dtype,
    device_of,
    make_executor,
    resolve_executor,
    spare_pages,
)
from pyspec.engine.explain import explanation
from pyspec.engine.features import HiddenStates
from pyspec.engine.kv_pages import KVCache, PagePool
from pyspec.engine.request import Completion, Request, StreamChunk
from pyspec.engine.runner import Runner
from pyspec.engine.sampling_params import SPECULATION, SamplingParams
from pyspec.engine.scheduler import Scheduler
from pyspec.engine.shared_prompt import SharedPrompt
from pyspec.engine.speculation import Speculator
from pyspec.engine.statistics import Observer, Observers, Statistics
from pyspec.engine.text import TextStream
from pyspec.models.chat import chat_prompt
from pyspec.models.checkpoint import Checkpoint, open_checkpoint
from pyspec.models.decoder import decoder
from pyspec.models.fetch import resolve_model
from pyspec.models.tokenizer import Tokenizer
from pyspec.trees.policy import TreePolicy

KV_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "int8": torch.int8}
DEFAULT_CONTEXT = 4096


class LLM:
    """A loaded model.

    model: a known name (fetched and cached), a GGUF file, a Hugging Face folder, or an open Checkpoint.
    speculation: "auto" (trees of the drafts where what they cost and bring says they pay), "always" (everything that they
    propose), "suffix", "ngram", "random" (random tree shapes, for tests) or "off". It never changes the answer.
    draft: what proposes trees: "suffix" (also None), "ngram", a folder, file or known name of a smaller model,
    ("layer_skip", layers) for the model's own layers, a draft object (pyspec.drafts), or several of these, whose trees are merged.
    draft_policy: how drafts with a model grow their trees (pyspec.trees.policy).
    verifier: "shared_noise" (sampled answers are those of plain decoding with the same seed), "greedy" (the same, for requests
    without sampling alone), or one with fresh randomness, whose answers follow the same law but are others with and without
    speculation: "target", "block", "top_down", "traversal" (docs/ops/verification.md).
    max_batch requests run at once; max_context tokens are the longest prompt plus answer; max_nodes is the
    largest tree; prefill_chunk the most prompt tokens per step; page_size the tokens per KV page; num_pages
    defaults to what max_batch requests of max_context need. executor: "auto" (a GPU's if there
    is one), "cuda" or "triton" (kernels of pyspec on a CUDA GPU), "compiled" (on the CPU) or "spec"; it raises UnsupportedError
    for a model or option that it cannot run.
    seed is of the random trees alone. calibrate=False skips measuring the cost table ("auto" then uses a flat one).

    Raises FileNotFoundError for an unknown model and ValueError for bad options or a model it cannot run.
    Not thread-safe: one thread at a time.
    """

    def __init__(
        self,
        model: str | Path | Checkpoint,
        *,
        speculation: str = "auto",
        max_batch: int = 8,
        max_context: int | None = None,
        max_nodes: int = 32,
        prefill_chunk: int = 128,
        kv_dtype: str = "bf16",
        page_size: int = 16,
        num_pages: int | None = None,
        executor: str = "auto",
        seed: int = 0,
        calibrate: bool = True,
        draft: DraftSpec = None,
        draft_policy: TreePolicy | None = None,
        verifier: str = "shared_noise",
    ) -> None:
        if speculation not in SPECULATION:
            raise ValueError(f"LLM: speculation must be {'|'.join(SPECULATION)}, got {speculation!r}")
        if kv_dtype not in KV_DTYPES:
            raise ValueError(f"LLM: kv_dtype must be {'|'.join(KV_DTYPES)}, got {kv_dtype!r}")
        for name, value, high in (
            ("max_batch", max_batch, 1024), ("max_nodes", max_nodes, 1024), ("prefill_chunk", prefill_chunk, 65536),
            ("page_size", page_size, 4096),
        ):  # fmt: skip
            _check_size(name, value, high)
        self.checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(resolve_model(model))
        self.config = config = self.checkpoint.config
        # The tokenizer first: what loading it needed for a moment then serves the weights.
        stream_decoder(self.checkpoint, needed=False)
        self.max_context = min(config.max_position, DEFAULT_CONTEXT) if max_context is None else max_context
        _check_size("max_context", self.max_context, config.max_position)
        width = -(-(self.max_context + max_nodes) // page_size)
        self.num_pages = max_batch * width if num_pages is None else num_pages
        _check_size("num_pages", self.num_pages, 2**31 - 1)

        max_tokens = prefill_chunk + max_batch * max_nodes
        self._batch = StepBatch(max_tokens, max_batch * max_nodes, max_batch, width, page_size)
        executor = resolve_executor(executor)
        check_kv_dtype(executor, KV_DTYPES[kv_dtype])
        self._cache = KVCache(
            config.num_layers,
            self.num_pages + spare_pages(executor, self._batch),
            page_size,
            config.num_kv_heads,
            config.head_dim,
            KV_DTYPES[kv_dtype],
            device_of(executor),
        )
        weights = Weights(self.checkpoint.weight)
        target = Target(
            self.checkpoint, weights, executor, KV_DTYPES[kv_dtype], page_size, max_batch, self.max_context, max_nodes,
            prefill_chunk, draft_policy or default_policy(max_nodes), self.num_pages,
        )  # fmt: skip
        add_rope_tables(weights, self.checkpoint, target.positions())
        drafts = make_drafts(draft, target)
        self._batch.drawn.verifier = check_drafts(verifier, speculation, drafts)
        make = lambda taps: make_executor(
            executor, decoder(config, taps), weights, self._cache, self._batch, self.checkpoint.release_pages
        )
        self._speculator = Speculator(speculation, drafts, max_nodes, config.vocab_size, seed, verifier)
        self._executor = make(self._speculator.taps)
        self.executor_name = self._executor.name
        self._pool = PagePool(self.num_pages)
        self._features = HiddenStates(config, make, self._batch, self._pool, self.max_context)
        self._scheduler = Scheduler(self._pool, max_batch, page_size, max_nodes, prefill_chunk)
        self._runner = Runner(self._executor, self._batch, self._scheduler, self._speculator, config.eos_ids)
        self._runner.observer = self._observers = Observers()
        self._admission = Admission(
            self.checkpoint, self._executor, self._scheduler, self._speculator, self.max_context, self.num_pages, page_size,
            self._batch.drawn.verifier, lambda length: SharedPrompt(length, page_size, self._pool, self._cache.copy_pages),
        )  # fmt: skip
        if calibrate and speculation == "auto":
            self._calibrate(max_nodes, max_batch)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.checkpoint.tokenizer

    @property
    def free_pages(self) -> int:
        """KV pages that no request owns."""
        return self._pool.free_pages

    def memory_bytes(self) -> dict[str, int]:
        """Bytes held: weights, kv, buffers, and what drafts have of their own."""
        held = self._executor.nbytes()
        return {
            "weights": held["weights"],
            "buffers": held["buffers"] + self._features.nbytes(),
            "kv": self._cache.nbytes,
            "drafts": sum(draft.nbytes() for draft in self._speculator.drafts),
        }

    def statistics(self) -> Statistics:
        """What all steps so far did and cost: acceptance by depth and rank, time by phase, reasons, speed against plain."""
        return self._observers.statistics

    def explain(self) -> str:
        """Why speculation did what it did so far, in words and tables."""
        return explanation(self.statistics(), self._speculator.planner)

    def observed_by(self, observer: Observer) -> AbstractContextManager[None]:
        """A context in which `observer` is told of every decoding request's steps."""
        return self._observers.joined_by(observer)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Answer prompts (texts or token ids), up to max_batch at once, in the order given.

        Returns one Completion per prompt; where params ask for n > 1 samples, n of them in the prompt's place, in order
        (Completion.prompt_index and sample_index say which). The samples run side by side, each as a request of its own.

        Every request is checked before any runs (ValueError names the prompt). A request that no token can be chosen for ends with
        finish_reason "error"; the others go on. All pages are free again when this returns or raises, also on Ctrl-C.
        """
        many = _as_prompts(prompts)
        every = (
            [params or SamplingParams()] * len(many)
            if params is None or isinstance(params, SamplingParams)
            else list(params)
        )
        if len(every) != len(many):
            raise ValueError(f"LLM.generate: params must be one per prompt ({len(many)}), got {len(every)}")
        requests = [
            request
            for i, (prompt, p) in enumerate(zip(many, every, strict=True))
            for request in self._admission.requests(prompt, p, f"prompts[{i}]", i)
        ]
        try:
            self._scheduler.waiting.extend(requests)
            while any(request.finish_reason is None for request in requests):
                self._runner.step()
            return [request.completion() for request in requests]
        finally:
            for request in requests:
                self._scheduler.release(request)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamChunk]:
        """Answer one prompt chunk by chunk. Closing the iterator ends the request and frees its pages.

        With params.n > 1 the chunks of all samples come as they are made; StreamChunk.sample_index says whose.
        """
        return self._stream(self._admission.requests(prompt, params or SamplingParams(), "prompt"))

    def _stream(self, requests: list[Request]) -> Iterator[StreamChunk]:
        sent = dict.fromkeys(requests, 0)  # tokens, of those that have not ended
        try:
            self._scheduler.waiting.extend(requests)
            while sent:
                if any(request.finish_reason is None for request in sent):
                    self._runner.step()  # but another call may have run these requests' steps meanwhile
                for request in list(sent):
                    chunk = request.chunk(sent[request])
                    sent[request] += len(chunk.token_ids)
                    if chunk.finish_reason:
                        del sent[request]
                    if chunk.finish_reason or chunk.token_ids:
                        yield chunk
        finally:
            for request in requests:
                self._scheduler.release(request)

    def chat_prompt(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation ({"role", "content"} each) by the model's chat template; ValueError without one."""
        text = chat_prompt(self.checkpoint, messages, add_generation_prompt=add_generation_prompt)
        return self.tokenizer.encode(text, add_special=False)

    def prompt_logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits [n, V] f32 behind each of n prompt tokens, n <= max_batch * max_nodes, as one chain on free pages."""
        if not 1 <= len(tokens) <= min(self._batch.max_rows, self.max_context):
            limit = min(self._batch.max_rows, self.max_context)
            raise ValueError(f"LLM.prompt_logits: tokens must be 1 to {limit}, got {len(tokens)}")
        request = Request(list(tokens), SamplingParams(), TextStream(None, ()), None, 1)
        pages = self._pool.take(-(-len(tokens) // self._batch.page_size))
        if pages is None:
            raise ValueError(
                f"LLM.prompt_logits: tokens must fit {self.free_pages} free pages, got {len(tokens)}"
            )
        request.pages = pages
        try:
            self._batch.fill([Work.prefill(request, len(tokens))._replace(logit_rows=len(tokens))])
            self._executor.run()
            return self._executor.logits().cpu().clone()
        finally:
            self._pool.give_back(pages)

    def hidden_states(self, tokens: Sequence[int], layers: Sequence[int]) -> torch.Tensor:
        """The residual stream [n, len(layers) * hidden] f32 that enters each of `layers` at each of n tokens, on the host.

        tokens: 1 to max_context ids, computed as one text in chunks on free pages. layers: distinct, in [0, num_layers], in the
        order of the columns; num_layers is what enters the final norm. The first call with new layers makes buffers for them; the
        weights are the model's own. ValueError for other tokens or layers, or too few free pages.
        """
        return self._features.compute(tokens, layers)

    def _calibrate(self, max_nodes: int, max_batch: int) -> None:
        """Measure what steps and their verification cost, or take it from the cache."""
        meter = CostMeter(self._executor, self._batch, self.num_pages)
        key = f"{self.executor_name} {self.checkpoint.path.name} {self.config} threads={num_threads()}"
        self._speculator.plan_with(meter.measure(key, max_nodes, max_batch, self.max_context))


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    many = list(prompts)
    if many and all(isinstance(token, int) for token in many):
        return [many]  # type: ignore[list-item]
    return many  # type: ignore[return-value]


def _check_size(name: str, value: object, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
        raise ValueError(f"LLM: {name} must be an integer in [1, {high}], got {value!r}")
