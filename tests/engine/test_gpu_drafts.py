# SPDX-License-Identifier: Apache-2.0
"""Drafts with a model and verifiers with fresh randomness on the GPU executor, on a double of its backend: the specification, which checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gpu_executor import OPTIONS, PROMPTS, ReplayedGraphs, ran
from tiny import tiny_checkpoint
from tiny_heads import eagle3_config, eagle3_folder, medusa_folder, mtp_folder
from torch import Tensor

from pyspec import UnsupportedError, backends
from pyspec.contract import OPS
from pyspec.drafts.base import DrawnRows
from pyspec.drafts.heads import loading
from pyspec.engine import LLM, SamplingParams
from pyspec.engine.batch import StepBatch, Work
from pyspec.engine.device_program import Registers
from pyspec.engine.padded_batch import PaddedBatch, padding_pages
from pyspec.engine.request import Request
from pyspec.engine.statistics import StepRecord
from pyspec.engine.text import TextStream
from pyspec.models import open_checkpoint
from pyspec.models.program import Ref
from pyspec.trees.grown_hybrid import GrownHybridPolicy
from pyspec.trees.policy import BestFirstPolicy, StaticPolicy
from pyspec.trees.shapes import parse_shape
from pyspec.trees.token_tree import Drawn, TokenTree
from pyspec.trees.verifiers import VERIFIERS

__all__ = ["ran"]  # the fixture
SAMPLED = [
    SamplingParams(max_tokens=10, ignore_eos=True, temperature=t, seed=i, top_k=60)
    for i, t in enumerate((0.8, 1.0, 0.0))
]
HEADS: dict[str, tuple[str, Callable[[Path, Any], Path]]] = {  # name -> (target, folder of the head)
    "eagle3": ("llama", lambda p, t: eagle3_folder(p, eagle3_config())),
    "eagle3 all flags": ("qwen3", lambda p, t: eagle3_folder(p, eagle3_config(
        model_type="qwen3", num_hidden_layers=2, fc_norm=True, norm_before_residual=True, norm_output=True))),
    "mtp": ("qwen3", lambda p, t: mtp_folder(p, t, "speculators")),
    "medusa": ("llama", lambda p, t: medusa_folder(p, t, "repository", blocks=2)),
    "medusa truncated": ("qwen2", lambda p, t: medusa_folder(p, t, "truncated")),
}  # fmt: skip
POLICIES: dict[str, Any] = {
    "traversal": StaticPolicy(parse_shape("2-2"), Drawn.WITHOUT_REPLACEMENT),
    "top_down": StaticPolicy(parse_shape("2-1"), Drawn.IID),
    "block": StaticPolicy(parse_shape("chain3"), Drawn.IID),
    "target": BestFirstPolicy(max_depth=3, beam=2),
}


@pytest.fixture
def as_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of heads as they are stored: the specification's executor does not quantise activations, as ops with q8_0 do."""
    monkeypatch.setattr(loading, "compact", lambda weight, format: weight)


class Steps:
    """The trees and paths of every decoding step, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[int], list[int], list[int]]] = []

    def record(self, record: StepRecord) -> None:
        self.seen.append((record.tokens.tolist(), record.parents.tolist(), record.path))


def run(model: Path, executor: str, params: list[SamplingParams], **options: Any) -> tuple[list[Any], Steps]:
    given = {**OPTIONS, "kv_dtype": "f32", "max_batch": 3, "prefill_chunk": 9, "speculation": "always"}
    llm, steps = LLM(model, executor=executor, **{**given, **options}), Steps()
    with llm.observed_by(steps):
        done = llm.generate(PROMPTS, params)
    assert llm.free_pages == llm.num_pages
    return [completion.token_ids for completion in done], steps


@pytest.mark.parametrize("name", HEADS)
def test_heads_draft_the_trees_that_they_draft_on_the_cpu(
    name: str, ran: set[str], as_stored: None, tmp_path: Path
) -> None:
    """The same nodes of every step, from features that never leave the device, and the answers of plain decoding."""
    target = tiny_checkpoint(HEADS[name][0], tmp_path / "target")
    head = HEADS[name][1](tmp_path / "head", open_checkpoint(target).config)
    params = [
        replace(p, temperature=5 * p.temperature, top_k=0) for p in SAMPLED
    ]  # much noise, which drafts know
    got, steps = run(target, "cuda-emulated", params, draft=head)
    want, plain = run(target, "spec", params, draft=head), run(target, "spec", params, speculation="off")
    assert got == want[0] == plain[0]
    assert steps.seen == want[1].seen
    assert sum(len(tokens) for tokens, *_ in steps.seen) > 3 * len(steps.seen)
    assert any(len(path) > 1 for *_, path in steps.seen)
    assert {"build_tree", "verify_tree"} <= ran
    assert "verify_drawn" not in ran


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("verifier", POLICIES)
def test_verifiers_with_fresh_randomness_give_the_tokens_of_the_cpu(
    verifier: str,
    graphs: bool,
    ran: set[str],
    tiny_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same trees, paths and tokens for the same seeds, padded, beside chunks of prompts; also where steps are captured."""
    if graphs:
        monkeypatch.setattr("pyspec.engine.gpu.Graphs", ReplayedGraphs)
    options = {"verifier": verifier, "draft": ("layer_skip", [0]), "draft_policy": POLICIES[verifier]}
    got, steps = run(tiny_model("llama"), "cuda-emulated", SAMPLED, **options)
    want, others = run(tiny_model("llama"), "spec", SAMPLED, **options)
    assert got == want
    assert steps.seen == others.seen
    assert any(len(path) > 1 for *_, path in steps.seen)
    assert any(len(path) < len(tokens) for tokens, _, path in steps.seen)
    assert "verify_drawn" in ran
    assert ("draw_children" in ran) == (verifier != "target")


def test_a_head_with_a_part_of_the_vocabulary_under_a_rejection_verifier(
    ran: set[str], as_stored: None, tmp_path: Path
) -> None:
    """Its rows are spread over the target's vocabulary on the device; edits and typical_p are of the target's law alone."""
    target = tiny_checkpoint("llama", tmp_path / "target")
    head = eagle3_folder(tmp_path / "head", eagle3_config())
    params = [replace(p, repetition_penalty=1.3, typical_p=0.8, logit_bias={7: 2.0}) for p in SAMPLED]
    options = {"verifier": "traversal", "draft": head, "draft_policy": GrownHybridPolicy((2, 3))}
    got, steps = run(target, "cuda-emulated", params, **options)
    want, others = run(target, "spec", params, **options)
    assert got == want
    assert steps.seen == others.seen
    assert {"draw_children", "verify_drawn", "edit_logits"} <= ran


@pytest.mark.parametrize("op", ["build_tree", "draw_children", "verify_drawn", "linear"])
def test_what_a_backend_lacks_is_refused_when_loading(op: str, ran: set[str], tmp_path: Path) -> None:
    call = backends._emulators["cuda-emulated"][0]
    target = tiny_checkpoint("llama", tmp_path / "target")
    config = open_checkpoint(target).config
    head = medusa_folder(tmp_path / "head", config, "repository")
    backends.register_emulator("cuda-emulated", call, lambda name: "no such kernel" if name == op else "")
    drawn = {"verifier": "traversal", "draft_policy": POLICIES["traversal"]}
    options = {"draw_children": drawn, "verify_drawn": {**drawn, "draft": None}}.get(op, {})
    with pytest.raises(UnsupportedError, match=rf"^LLM: .* cannot run.*: {op}: no such kernel"):
        LLM(target, executor="cuda-emulated", **{**OPTIONS, "draft": head, **options})


def padded(works: list[Work]) -> PaddedBatch:
    batch = StepBatch(20, 12, 3, 5, 4)
    batch.drawn.verifier = VERIFIERS["traversal"]
    batch.fill(works)
    padded = PaddedBatch(batch, 10 + padding_pages(20, 4), torch.device("cpu"))
    padded.resize()
    padded.send()
    return padded


@pytest.mark.parametrize("nodes", range(2, 12))
@pytest.mark.parametrize("walk", ["traversal", "top_down", "target"])
def test_padded_batches_keep_the_contract_of_verify_drawn(nodes: int, walk: str) -> None:
    """The specification's checks pass and walks of padding end after two nodes, for the batch and for padding alone."""
    request = Request([1], SamplingParams(seed=3), TextStream(None, ()), None, 1, pages=[1, 2, 5], kv_len=3)
    tree = TokenTree.chain([4] * nodes)
    tree = TokenTree(tree.tokens, tree.parents, Drawn.IID)
    rows = DrawnRows(torch.randn(nodes - 1, 30), (tree.parents + 1) % nodes, 0.5)
    batch = padded([Work.decode(request, tree, rows._replace(row_of=_rows_above(nodes)))])
    names = ("row_tokens", "row_parents", "cu_r", "drawn")
    law = ("root_positions", "temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stream")
    for send, own in ((batch.send, 1), (batch.send_blank, 0)):
        send()
        inputs = batch.inputs()
        logits = torch.randn(batch.R, 30)
        args = [*(inputs[n] for n in names), logits, inputs["draft_row"], inputs["draft_temperature"]]
        out = OPS["verify_drawn"].run(
            logits, *args, *(inputs[n] for n in law), None, walk=walk, max_path=nodes
        )
        assert (out[1][own:] <= 2).all()
    assert inputs["drawn"].tolist() == [1] * batch.R


def _rows_above(nodes: int) -> Any:
    rows = torch.arange(nodes, dtype=torch.int32)
    rows[-1] = -1
    return rows.numpy()


def test_registers_are_written_in_parts_and_read_as_a_whole() -> None:
    registers, x = Registers(), torch.arange(18.0).view(2, 9)
    ref: Callable[[int, int], Ref] = lambda start, end: Ref("x", start, end - start)
    registers.write(Ref("other", 0, 9), -x)
    registers.write(ref(5, 9), x[:, 5:])
    registers.write(ref(0, 5), x[:, :5])
    assert torch.equal(registers.read(ref(0, 9)), x)
    registers.write(ref(0, 9), x)
    middle: Tensor = torch.full((2, 3), 7.0)
    registers.write(ref(2, 5), middle)  # what is left and right of it stays
    want = torch.cat([x[:, :2], middle, x[:, 5:]], 1)
    assert torch.equal(registers.read(ref(0, 9)), want)
    assert registers.read(ref(2, 5)) is middle
    assert torch.equal(registers.read(ref(1, 6)), want[:, 1:6])
    assert torch.equal(registers.read(Ref("other", 0, 9)), -x)
