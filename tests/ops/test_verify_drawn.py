# SPDX-License-Identifier: Apache-2.0
"""verify_drawn: bits of the kernel, greedy limits, rounding rules, rows without a law, refusals.

That it follows the target's law is tested in tests/verification.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from contract_tests import error_of, needs_native
from drawn_fuzz import ints, verify_call
from sampling_fuzz import bits
from torch import Tensor

from pyspec import ops, spec
from pyspec.contract import Case
from pyspec.spec import noise
from pyspec.spec.rejection import WALKS, Residual
from pyspec.spec.verify_drawn import example

BACKENDS = ["spec", pytest.param("cpu", marks=needs_native)]
NAMES = [term.name for term in spec.verify_drawn.inputs]


def call_of(case: Case) -> dict[str, Any]:
    """Its arguments by name, tensors copied."""
    given = zip(NAMES, case.args, strict=False)
    return {**{name: None if arg is None else arg.clone() for name, arg in given}, **case.kwargs}


@needs_native
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in spec.verify_drawn.cases()])
def test_kernel_equals_specification_on_the_cases(case: Case) -> None:
    want = spec.verify_drawn.run(*case.args, **case.kwargs)
    for a, b in zip(want, torch.ops.pyspec.verify_drawn(*case.args, **case.kwargs), strict=True):
        assert torch.equal(bits(a), bits(b))


@needs_native
def test_kernel_equals_specification_on_hard_rows_and_foreign_tokens() -> None:
    rng = random.Random(12)
    for _ in range(150):
        args, kwargs = verify_call(rng)
        want = spec.verify_drawn.run(*args, **kwargs)
        for a, b in zip(want, torch.ops.pyspec.verify_drawn(*args, **kwargs), strict=True):
            assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("rule", ["iid", "without_replacement", "hybrid", "deterministic"])
@pytest.mark.parametrize("walk", WALKS)
def test_at_temperature_zero_every_walk_is_the_greedy_one(walk: str, rule: str) -> None:
    for seed in range(20):
        call = call_of(example(((3, 2, 1), (2, 2)), 23, 2, rule, walk, seed))
        call["temperature"] = torch.zeros(2)
        want = ops.verify_tree(
            call["logits"], call["tokens"], call["parents"], call["cu_t"], call["step"], call["temperature"],
            *(call[name] for name in NAMES[10:]), max_path=call["max_path"], num_logprobs=2,
        )  # fmt: skip
        path, path_len, *rest = ops.verify_drawn(**call)
        assert torch.equal(path_len, want[1])
        paths_of_tokens = [
            [int(call["tokens"][call["cu_t"][b] + i]) for i in p[b, : path_len[b]]]
            for p in (path, want[0])
            for b in (0, 1)
        ]
        assert paths_of_tokens[:2] == paths_of_tokens[2:]  # of equal siblings (iid) another may be walked
        for a, b in zip(rest, want[2:], strict=True):
            assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("walk", ["top_down", "traversal"])
def test_a_draft_that_is_the_target_is_always_accepted(walk: str) -> None:
    for seed in range(30):
        call = call_of(example(((1, 1, 1, 1),), 50, 0, "without_replacement", walk, seed))
        call["edited"], call["logits"] = None, call["draft_logits"]
        call["draft_temperature"] = call["temperature"] = torch.ones(1)
        call.update(top_k=ints([0]), top_p=torch.ones(1), min_p=torch.zeros(1), typical_p=torch.ones(1))
        assert ops.verify_drawn(**call)[1].tolist() == [5]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_impossible_failure_leaves_the_residual_as_it_was(backend: str) -> None:
    """All of the target's law is on one token that is drawn for certain: only rounding could refuse it."""
    state = Residual(torch.tensor([0.0, 1.0]).double(), torch.tensor([0.0, 1.0]).double(), 1.0, [(1, 2)])
    assert state.offer(1, 2) == (1.0, 1.0)
    state.fail(1, 2)
    assert (state.A, state.rho, state.m().tolist()) == (1.0, 0.0, [0.0, 1.0])
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    out = ops.verify_drawn(**simple_call(logits.repeat(3, 1), [0, 1, 1], walk="top_down"), backend=backend)
    assert (out[1].tolist(), out[2].tolist()) == ([3], [[1, 1, 1]])


def simple_call(
    logits: Tensor, tokens: list[int], *, walk: str, drawn: int = 2, draft: Tensor | None = None
) -> dict[str, Any]:
    """One chain of all rows at temperature 1."""
    n = len(tokens)
    f32, i32 = (lambda x: torch.tensor([x])), (lambda x: ints([x]))
    return {
        "logits": logits, "tokens": ints(tokens), "parents": ints(list(range(-1, n - 1))), "cu_t": ints([0, n]),
        "drawn": ints([drawn] * n), "draft_logits": logits if draft is None else draft, "draft_row": ints(list(range(n))),
        "draft_temperature": f32(1.0), "step": i32(4), "temperature": f32(1.0), "top_k": i32(0), "top_p": f32(1.0),
        "min_p": f32(0.0), "typical_p": f32(1.0), "seed": torch.tensor([9]), "stream": i32(0), "walk": walk, "max_path": n,
    }  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("walk", ["top_down", "traversal"])
def test_children_that_their_own_law_cannot_give_are_refused(walk: str, backend: str) -> None:
    """Token 2 has no probability in the draft, token 0 none in the target; a draft row without a law accepts nothing."""
    target, draft = torch.tensor([-torch.inf, 0.0, 5.0]), torch.tensor([0.0, 0.0, -torch.inf])
    nothing = torch.full((3,), torch.nan)
    for token, row in ((2, draft), (0, draft), (1, nothing)):
        call = simple_call(target.repeat(2, 1), [1, token], walk=walk, draft=row.repeat(2, 1))
        for seed in range(30):
            call["seed"] = torch.tensor([seed])
            _, path_len, emitted, *_ = ops.verify_drawn(**call, backend=backend)
            assert path_len.tolist() == [1]
            assert emitted[0, 0] in (1, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("walk", WALKS)
def test_a_row_without_a_law_ends_the_path_with_token_zero_and_nan(walk: str, backend: str) -> None:
    """Nothing below it is looked at; above it all goes on, though every logprob of the raw rows is there."""
    logits = torch.tensor([[0.0, 50.0, 0.0, 0.0]]).repeat(3, 1)
    call = simple_call(logits, [0, 1, 1], walk=walk)
    call.update(edited=logits.clone(), num_logprobs=2)
    call["edited"][1] = -torch.inf
    path, path_len, emitted, logprobs, top_tokens, top_logprobs = ops.verify_drawn(**call, backend=backend)
    assert (path.tolist(), path_len.tolist(), emitted.tolist()) == ([[0, 1, -1]], [2], [[1, 0, -1]])
    assert logprobs[0, 0] == 0.0
    assert logprobs[0, 1].isnan()
    assert top_tokens[0, 1].tolist() == [0, 1]
    assert top_logprobs[0, 1].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_filters_hold_for_children_and_for_the_token_after_the_path(backend: str) -> None:
    """Token 3 is drawn with certainty, but top-k drops it: it is never emitted."""
    target, draft = (
        torch.tensor([3.0, 2.9, 2.8, 2.7]),
        torch.tensor([-torch.inf, -torch.inf, -torch.inf, 0.0]),
    )
    for walk in WALKS:
        call = simple_call(target.repeat(2, 1), [0, 3], walk=walk, draft=draft.repeat(2, 1))
        call["top_k"] = ints([3])
        for seed in range(30):
            call["seed"] = torch.tensor([seed])
            _, path_len, emitted, *_ = ops.verify_drawn(**call, backend=backend)
            assert (path_len.tolist(), bool(emitted[0, 0] < 3)) == ([1], True)


def test_the_numbers_belong_to_step_and_node() -> None:
    """A chain whose acceptance is a test of one uniform number against a known share."""
    target = torch.tensor([0.4, 0.6]).log()
    draft = torch.tensor([0.8, 0.2]).log()
    share = float(torch.tensor(0.4).log().double().exp()) / 0.8
    for step in range(40):
        call = simple_call(target.repeat(2, 1), [0, 0], walk="top_down", draft=draft.repeat(2, 1))
        call["step"] = ints([step])
        accepted = noise.uniform(9, 0, step, 1, noise.ACCEPT) < share
        assert ops.verify_drawn(**call)[1].tolist() == [2 if accepted else 1]
        one = (
            0 if noise.uniform(9, 0, step, 0, noise.EXTRA) < 0.4 else 1
        )  # a root alone: the token by the target's law
        alone = {**simple_call(target[None], [0], walk="traversal"), "step": ints([step])}
        assert ops.verify_drawn(**alone)[2].tolist() == [[one]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_no_walk_needs_are_not_read(backend: str) -> None:
    call = call_of(example(((2, 2), (2, 2)), 11, 1, "without_replacement", "top_down", 3))
    want = ops.verify_drawn(**call, backend=backend)
    walked = {int(call["cu_t"][b] + i) for b in (0, 1) for i in want[0][b, : want[1][b]]}
    for node in range(call["logits"].size(0)):
        if node not in walked:
            for name in ("logits", "edited", "draft_logits"):
                call[name][node] = torch.nan
    for a, b in zip(want, ops.verify_drawn(**call, backend=backend), strict=True):
        assert torch.equal(bits(a), bits(b))


def test_requests_do_not_depend_on_the_batch() -> None:
    rng = random.Random(5)
    args, kwargs = next(
        call
        for call in iter(lambda: verify_call(rng), None)
        if call[0][7].numel() == 4 and call[0][0].numel()
    )
    call = dict(zip(NAMES, args, strict=False))
    whole = ops.verify_drawn(*args, **kwargs)
    for b in range(4):
        nodes = slice(int(call["cu_t"][b]), int(call["cu_t"][b + 1]))
        cut = {"cu_t": call["cu_t"][b : b + 2] - call["cu_t"][b], "draft_logits": call["draft_logits"]}
        for name in set(call) - set(cut):
            part = (
                nodes
                if name in ("logits", "tokens", "parents", "drawn", "draft_row", "edited")
                else slice(b, b + 1)
            )
            cut[name] = call[name][part]
        for a, w in zip(ops.verify_drawn(**cut, **kwargs), whole, strict=True):
            assert torch.equal(bits(a[0]), bits(w[b]))


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("tokens", 3, 11, "tokens[3] must be in [0, 11), got 11"),
        ("parents", 1, 1, "parents[1] must be in [0, 1), got 1"),
        ("step", 1, -4, "step[1] must be >= 0, got -4"),
        ("top_p", 0, 0, "top_p[0] must be in (0, 1], got 0"),
        ("max_path", None, 1, "max_path must be >= 3 (nodes of the longest path), got 1"),
        ("num_logprobs", None, 12, "num_logprobs must be in [0, 11], got 12"),
        ("walk", None, "block", "walk must be top_down|traversal|target, got block"),
        ("drawn", 2, 3, "drawn[2] must be in [0, 2], got 3"),
        ("drawn", 2, 1, "drawn[2] must be 1 for all children of a node or for none, got 1"),
        ("draft_row", 0, 9, "draft_row[0] must be in [-1, 9), got 9"),
        ("draft_row", 0, -1, "draft_row[0] must be >= 0 above drawn[1] = 2, got -1"),
        ("draft_temperature", 1, -1.0, "draft_temperature[1] must be finite and >= 0, got -1"),
        ("tokens", 2, None, "tokens[2] must be different from those of its siblings, got {}"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_values_are_refused(name: str, index: int | None, value: Any, message: str, backend: str) -> None:
    call = call_of(next(iter(spec.verify_drawn.cases())))
    if index is None:
        call[name] = value
    else:
        call[name][index] = call["tokens"][1] if value is None else value
    message = message.format(int(call["tokens"][1]))
    assert error_of(lambda: ops.verify_drawn(**call, backend=backend)) == (
        ValueError,
        f"verify_drawn: {message}",
    )
