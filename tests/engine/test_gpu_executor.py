# SPDX-License-Identifier: Apache-2.0
"""The GPU executor on a double of its backend, the checked specification: padding, graphs, refusals, and the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import model_gguf
from tiny import tiny_model as tiny_transformer

from pyspec import UnsupportedError, backends
from pyspec.contract import OPS
from pyspec.engine import LLM, SamplingParams
from pyspec.engine.batch import StepBatch, Work
from pyspec.engine.graphs import Graphs, bucket, buckets
from pyspec.engine.padded_batch import PaddedBatch, padding_pages
from pyspec.engine.request import Request
from pyspec.engine.staging import Staging
from pyspec.engine.text import TextStream
from pyspec.trees.token_tree import TokenTree

PROMPTS = [
    [5 + (3 * i * i + i * k) % 40 for i in range(3 + 7 * k)] for k in range(1, 4)
]  # 10, 17 and 24 tokens
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=2)
SAMPLED = SamplingParams(max_tokens=12, ignore_eos=True, logprobs=0, temperature=0.8, top_k=50, seed=7)
OPTIONS: dict[str, Any] = {"max_context": 64, "max_nodes": 6, "page_size": 4, "calibrate": False}


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The specification, with its checks of shapes and values, as the CUDA kernels. Gives the ops that ran."""
    ops: set[str] = set()

    def call(op: str, *args: Any, **kwargs: Any) -> Any:
        ops.add(op)
        if op == "tree_attention_plan":
            return torch.tensor([kwargs["node_count"]], dtype=torch.uint8)
        if op == "tree_attention_run":
            op, workspace, args = "tree_attention", args[-1], args[:-1]
            assert workspace.tolist() == [kwargs.pop("node_count")]  # the plan is one for such a run
        spec = OPS[op]
        return spec.run(*args, *(None,) * (len(spec.inputs) - len(args)), **kwargs)

    monkeypatch.setattr(backends, "_emulators", {})
    limits = dict(OPS["tree_attention"].limits)
    monkeypatch.setitem(limits, "cuda", lambda *args, **kwargs: None)  # tiny heads
    monkeypatch.setitem(OPS, "tree_attention", replace(OPS["tree_attention"], limits=limits))
    backends.register_emulator("cuda-emulated", call)
    return ops


def answers(path: Path, executor: str, params: SamplingParams, **options: Any) -> list[tuple[Any, Any]]:
    """Tokens, which must be equal, and logprobs, which the specification's sums give to about 2^-9: the cache is bf16."""
    llm = LLM(path, executor=executor, **{**OPTIONS, **options})
    done = llm.generate(PROMPTS, params)
    assert llm.free_pages == llm.num_pages
    return [(c.token_ids, pytest.approx(c.logprobs, abs=2**-8)) for c in done]


def same(got: list[tuple[Any, Any]], want: list[tuple[Any, Any]]) -> bool:
    return [tokens for tokens, _ in got] == [tokens for tokens, _ in want] and all(
        a.expected == b for (_, a), (_, b) in zip(got, want, strict=True)
    )


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("speculation", ["off", "random"])
def test_tokens_and_logprobs_are_those_of_the_specification(
    speculation: str, params: SamplingParams, ran: set[str], tiny_model: Callable[[str], Path]
) -> None:
    """Batches, chunks of prompts and random trees, all padded."""
    options = {"speculation": speculation, "max_batch": 3, "prefill_chunk": 9}
    got = answers(tiny_model("llama"), "cuda-emulated", params, **options)
    assert same(got, answers(tiny_model("llama"), "spec", params, speculation="off", max_batch=1))
    assert {
        "append_kv",
        "commit_kv",
        "tree_attention_plan",
        "tree_attention_run",
        "verify_tree",
        "linear",
    } <= ran


@pytest.mark.parametrize("name", ["llama-tied", "qwen2", "qwen3", "gemma3"])
def test_every_architecture(name: str, ran: set[str], tiny_model: Callable[[str], Path]) -> None:
    got = answers(tiny_model(name), "cuda-emulated", GREEDY, speculation="random", max_batch=2)
    assert same(got, answers(tiny_model(name), "spec", GREEDY, speculation="off"))


def test_gguf_rows_are_used_as_they_lie_in_the_file(ran: set[str], tmp_path: Path) -> None:
    """Mixed formats: q and k are one call, v is another, and their results are joined."""
    format = lambda name: "q4_0" if "attn_v" in name or "ffn_up" in name else "q8_0"
    path = model_gguf(tmp_path / "m.gguf", tiny_transformer("llama-tied"), "llama", quantise=format)
    got = answers(path, "cuda-emulated", GREEDY, speculation="random")
    assert same(got, answers(path, "cuda-emulated", GREEDY, speculation="off", max_batch=1))
    assert {"quant_embedding", "quant_linear"} <= ran
    assert "linear" not in ran
    llm = LLM(path, executor="cuda-emulated", **OPTIONS)
    exact = LLM(path, executor="spec", **OPTIONS)
    a, b = (engine.prompt_logits(PROMPTS[0][:6]) for engine in (llm, exact))
    assert (
        a - b
    ).norm() < 0.04 * b.norm()  # activations in int8 against exact ones; parts in a wrong order give about 1


def test_an_op_that_the_backend_lacks_is_refused_when_loading(
    ran: set[str], tiny_model: Callable[[str], Path]
) -> None:
    backends.register_emulator(
        "cuda-emulated", print, lambda op: "no such kernel" if op == "silu_mul" else ""
    )
    with pytest.raises(
        UnsupportedError, match=r"^LLM: executor 'cuda-emulated' cannot run this model: silu_mul: no such"
    ):
        LLM(tiny_model("llama"), executor="cuda-emulated", **OPTIONS)
    assert ran == set()


def test_a_backend_without_an_emulator_is_refused(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(
        UnsupportedError, match="'triton-emulated' cannot run this model: .*no emulator is registered"
    ):
        LLM(tiny_model("llama"), executor="triton-emulated", **OPTIONS)


@pytest.mark.parametrize("executor", ["cuda", "triton"])
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_its_executors_are_refused(executor: str, tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(
        UnsupportedError, match=f"LLM: executor '{executor}' cannot run: torch finds no CUDA GPU"
    ):
        LLM(tiny_model("llama"), executor=executor, **OPTIONS)


def request(pages: list[int], kv_len: int) -> Request:
    return Request([1], SamplingParams(seed=3), TextStream(None, ()), None, 1, pages=pages, kv_len=kv_len)


def padded(works: list[Work], max_batch: int = 3) -> PaddedBatch:
    batch = StepBatch(20, 12, max_batch, 5, 4)
    batch.fill(works)
    padded = PaddedBatch(batch, 10 + padding_pages(20, 4), torch.device("cpu"))
    padded.resize()
    padded.send()
    return padded


def test_padding_is_a_request_of_its_own() -> None:
    tree = TokenTree([7, 8, 9, 8, 5], [-1, 0, 0, 1, 1])
    batch = padded([Work.decode(request([3, 1, 4], 6), tree)])
    inputs = batch.inputs()
    assert (batch.T, batch.R) == (6, 6)
    assert inputs["tokens"].tolist() == [7, 8, 9, 8, 5, 0]
    assert inputs["cu_t"].tolist() == inputs["cu_r"].tolist() == [0, 5, 6]
    assert inputs["slots"].tolist() == [6, 7, 16, 17, 18, 40]  # page 10 is the first of the padding
    assert inputs["kv_len"].tolist() == [6, 0]
    assert inputs["page_table"][-1, :6].tolist() == [10, 11, 12, 13, 14, 15]
    assert inputs["seed"].tolist() == [3, 0]


def test_requests_that_a_batch_lacks_have_no_nodes() -> None:
    chain = TokenTree.chain([4, 4])
    works = [Work.decode(request([2 * b, 2 * b + 1], b), chain) for b in range(5)]
    batch = padded(works, max_batch=8)
    inputs = batch.inputs()
    assert batch.sizes == (12, 12, 6)
    assert batch.nodes_per_request == 2
    assert inputs["cu_t"].tolist() == inputs["cu_r"].tolist() == [0, 2, 4, 6, 8, 10, 10, 12]
    assert inputs["kv_len"].tolist() == [0, 1, 2, 3, 4, 0, 0]
    assert inputs["top_p"].tolist() == [1.0] * 7


@pytest.mark.parametrize("nodes", range(1, 13))
def test_padded_batches_keep_the_contracts(nodes: int) -> None:
    """Slots differ, and the checks of attention and verification pass, for the batch and for padding alone."""
    batch = padded([Work.decode(request([1, 2, 5], 3), TokenTree.chain([4] * nodes))])
    for send in (batch.send, batch.send_blank):
        send()
        inputs = batch.inputs()
        assert len(set(inputs["slots"].tolist())) == batch.T >= nodes
        pages = torch.zeros(16, 4, 1, 64)
        args = (
            torch.zeros(batch.T, 1, 64),
            pages,
            pages,
            *(inputs[n] for n in ("page_table", "kv_len", "cu_t", "parents")),
        )
        spec = OPS["tree_attention"]
        args += (None,) * (len(spec.inputs) - len(args))
        assert spec.check is not None
        spec.check(spec.bind(args), *args, scale=1.0)


def test_padding_alone_leaves_every_page_of_requests(
    ran: set[str], tiny_model: Callable[[str], Path]
) -> None:
    llm = LLM(tiny_model("llama"), executor="cuda-emulated", speculation="off", **OPTIONS)
    llm.generate(PROMPTS, GREEDY)
    executor: Any = llm._executor
    before = [pages[:, : llm.num_pages].clone() for pages in (llm._cache.k, llm._cache.v)]
    executor._padded.send_blank()
    executor._model()
    executor._walk(executor._calls, 0)
    after = [pages[:, : llm.num_pages] for pages in (llm._cache.k, llm._cache.v)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("most", [1, 2, 5, 31, 32, 33, 384, 1000])
def test_buckets_waste_at_most_a_third(most: int) -> None:
    sizes = buckets(most)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] >= most
    assert len(sizes) == 1 or sizes[-2] < most
    for count in range(1, most + 1):
        assert count <= bucket(count, sizes) <= max(count, 1.5 * (count - 1))


class ReplayedGraphs(Graphs):
    """Graphs as on CUDA, with a double of capture: a replay runs the function again and leaves its results in place."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._on_cuda = True
        self.replays: list[Hashable] = []

    def _capture(self, body: Callable[[], Any]) -> Any:
        body()
        results = body()

        class Graph:
            def replay(graph) -> None:
                for held, new in zip(results or (), body() or (), strict=True):
                    held.copy_(new)

        return Graph(), results

    def run(self, key: Hashable, *args: Any) -> Any:
        self.replays.append(key)
        return super().run(key, *args)


def test_capture_in_the_midst_of_generation_changes_nothing(
    ran: set[str], tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes are captured when they first occur, between steps that count: on padding alone, twice run before the replay."""
    monkeypatch.setattr("pyspec.engine.gpu.Graphs", ReplayedGraphs)
    llm = LLM(
        tiny_model("llama"),
        executor="cuda-emulated",
        speculation="random",
        max_batch=3,
        prefill_chunk=9,
        **OPTIONS,
    )
    got = [(c.token_ids, pytest.approx(c.logprobs)) for c in llm.generate(PROMPTS, SAMPLED)]
    assert same(got, answers(tiny_model("llama"), "spec", SAMPLED, speculation="off"))
    graphs: Any = llm._executor._graphs  # type: ignore[attr-defined]
    assert len(graphs._captured) < len(graphs.replays)
    assert {key[0] for key in graphs._captured} == {"model", "walk"}


def test_staging_keeps_addresses_and_aligns_them() -> None:
    staging = Staging({"a": ((3,), torch.int32), "b": ((2, 2), torch.int64)}, torch.device("cpu"))
    addresses = [tensor.data_ptr() for tensor in staging.device.values()]
    assert addresses[1] - addresses[0] == 256
    arrays = staging.fill()
    arrays["a"][:], arrays["b"][:] = [1, 2, 3], np.arange(4).reshape(2, 2)
    assert staging.device["a"].tolist() == [0, 0, 0]
    staging.send()
    assert staging.device["a"].tolist() == [1, 2, 3]
    assert staging.device["b"].tolist() == [[0, 1], [2, 3]]
    assert [tensor.data_ptr() for tensor in staging.device.values()] == addresses


def test_hidden_states_are_those_of_the_specification(
    ran: set[str], tiny_model: Callable[[str], Path]
) -> None:
    """In chunks of 8 nodes, padded; a later step of the program writes into the columns that were tapped."""
    options: dict[str, Any] = {**OPTIONS, "max_batch": 1, "prefill_chunk": 2, "kv_dtype": "f32"}
    engines = [LLM(tiny_model("llama"), executor=name, **options) for name in ("cuda-emulated", "spec")]
    got, want = (llm.hidden_states(PROMPTS[2], [2, 0, 1]) for llm in engines)
    assert torch.allclose(got, want, rtol=0, atol=1e-4 * want.abs().max().item())
    assert engines[0].free_pages == engines[0].num_pages


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_draft_s_model_runs_there_too(
    params: SamplingParams, ran: set[str], tiny_model: Callable[[str], Path]
) -> None:
    """Its cache has a padding of its own; branches copy pages on the device."""
    options = {"draft": ("layer_skip", [0]), "speculation": "always", "max_batch": 2}
    got = answers(tiny_model("llama"), "cuda-emulated", params, **options)
    assert same(got, answers(tiny_model("llama"), "spec", params, speculation="off"))
