# SPDX-License-Identifier: Apache-2.0
"""build_tree: the textbook's scores, the order, the noise of the verification, levels in a row on a device, and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from contract_tests import error_of
from torch import Tensor

from pyspec import ops, spec
from pyspec.spec import noise
from pyspec.spec.pipeline import Law, pick

RULES = ["deterministic", "shared_noise"]


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def one_request(
    logits: Tensor, node_score: Tensor | None = None, *, temperature: float = 1.0, seed: int = 5, position: int = 7, **kwargs
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """token, parent, score [width] of one request whose frontier is all rows."""
    rows = logits.size(0)
    score = torch.zeros(rows) if node_score is None else node_score
    laws = (ints(position), torch.tensor([temperature]), torch.tensor([seed]), ints(1))
    token, parent, out = ops.build_tree(logits, score, ints(0, rows), *laws, **kwargs)
    return token[0], parent[0], out[0]


def textbook(logits: Tensor, node_score: Tensor, temperature: float, rule: str) -> Tensor:
    """Scores [T, V] in float64 by log_softmax."""
    law = (logits.double() / temperature).log_softmax(-1)
    if rule == "shared_noise":
        law = (law + noise.gumbel(5, 1, 7, logits.size(1))).log_softmax(-1)
    return node_score.double()[:, None] + law


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.3])
def test_scores_and_order_are_the_textbooks(rule: str, temperature: float) -> None:
    g = torch.Generator().manual_seed(2)
    logits, node_score = 3 * torch.randn(5, 300, generator=g), -2 * torch.rand(5, generator=g)
    token, parent, score = one_request(logits, node_score, temperature=temperature, width=40, rule=rule)
    want = textbook(logits, node_score, temperature, rule)
    torch.testing.assert_close(score.double(), want[parent.long(), token.long()], rtol=2.0**-23, atol=1e-14)
    best, _ = want.flatten().sort(descending=True)
    torch.testing.assert_close(score.double(), best[:40], rtol=2.0**-23, atol=1e-14)
    assert len(set(zip(parent.tolist(), token.tolist(), strict=True))) == 40
    assert parent.unique().numel() > 2  # the frontier competes as one


def test_ties_go_to_the_lower_parent_then_the_lower_token() -> None:
    logits = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]])
    token, parent, score = one_request(logits, width=8, rule="deterministic")
    assert parent.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert token.tolist() == [1, 2, 1, 2, 0, 3, 0, 3]
    assert score.unique().numel() == 2


def test_special_rows_and_nodes_have_no_children() -> None:
    nan, inf = math.nan, math.inf
    logits = torch.tensor(
        [[nan, 0.0, -inf], [inf, 5.0, inf], [nan, nan, -inf], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    )
    scores = torch.tensor([0.0, -1.0, 0.0, -inf, nan])
    token, parent, score = one_request(logits, scores, width=5, rule="deterministic")
    assert parent.tolist() == [0, 1, 1, -1, -1]
    assert token.tolist() == [1, 0, 2, -1, -1]
    assert score.tolist() == pytest.approx([0.0, -1.0 - math.log(2), -1.0 - math.log(2), -inf, -inf])


def test_scores_that_round_to_minus_infinity_are_left_out() -> None:
    logits = torch.tensor([[3e38, -3e38, 2.999e38]])
    token, _, score = one_request(logits, temperature=2.0**-10, width=3, rule="deterministic")
    assert token.tolist() == [0, 2, -1]  # 6e38 * 2^10 is beyond float32
    assert score.tolist() == pytest.approx([0.0, -1e35 * 2**10, -math.inf], rel=1e-2)


def test_temperature_zero_is_the_law_of_temperature_one_without_noise() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(3))
    want = one_request(logits, temperature=1.0, width=9, rule="deterministic")
    for rule in RULES:
        for a, b in zip(want, one_request(logits, temperature=0.0, width=9, rule=rule), strict=True):
            assert torch.equal(a, b)


def test_shared_noise_puts_the_verifications_pick_first() -> None:
    """With the target's own logits as the draft, the best child is the token that verification picks."""
    g = torch.Generator().manual_seed(4)
    for seed in range(40):
        logits = 2 * torch.randn(1, 70, generator=g)
        picked = pick(logits[0], 7, Law(0.8, 0, 1.0, 0.0, seed, 1), 0).token
        token, *_ = one_request(logits, temperature=0.8, seed=seed, width=2, rule="shared_noise")
        assert token[0] == picked


@pytest.mark.parametrize("rule", RULES)
def test_level_after_level_without_the_host(rule: str) -> None:
    """Three levels fed by their own outputs, two requests, against each request grown by the textbook."""
    vocab, width, batch, levels = 19, 3, 2, 3
    table = 2 * torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(6))  # a bigram draft
    token, score = ints(4, 11), torch.zeros(batch)
    cu_t, position = torch.arange(batch + 1).int(), ints(7, 7)
    law = (torch.tensor([1.0, 1.0]), torch.tensor([5, 5]), ints(1, 1))
    grown = []
    for level in range(levels):
        logits = table[token.long()]
        out = ops.build_tree(logits, score, cu_t, position + level, *law, width=width, rule=rule)
        grown.append(out)
        token, score = out[0].flatten(), out[2].flatten()
        cu_t = width * torch.arange(batch + 1).int()
    for b, root in enumerate((4, 11)):
        paths = [((root,), 0.0)]
        for level in range(levels):
            children = []
            for path, path_score in paths:
                law_row = table[path[-1]].double().log_softmax(-1)
                if rule == "shared_noise":
                    law_row = (law_row + noise.gumbel(5, 1, 7 + level, vocab)).log_softmax(-1)
                children += [((*path, x), path_score + float(law_row[x])) for x in range(vocab)]
            paths = sorted(children, key=lambda child: -child[1])[:width]
            assert [path[-1] for path, _ in paths] == grown[level][0][b].tolist()
            torch.testing.assert_close(
                grown[level][2][b].tolist(), [s for _, s in paths], rtol=1e-6, atol=1e-6
            )


def test_requests_do_not_depend_on_the_batch() -> None:
    case = next(c for c in spec.build_tree.cases() if c.name.startswith("B3-T12"))
    logits, score, cu_t, *laws, _ = case.args
    whole = ops.build_tree(*case.args, **case.kwargs)
    for b in range(3):
        rows = slice(int(cu_t[b]), int(cu_t[b + 1]))
        alone = (logits[rows], score[rows], cu_t[b : b + 2] - cu_t[b], *(t[b : b + 1] for t in laws))
        for a, w in zip(ops.build_tree(*alone, **case.kwargs), whole, strict=True):
            assert torch.equal(a[0], w[b])


@pytest.mark.parametrize("rule", RULES)
def test_part_of_the_vocabulary_is_the_whole_with_the_rest_impossible(rule: str) -> None:
    g = torch.Generator().manual_seed(8)
    ids = torch.randperm(900, generator=g)[:70].sort().values.int()
    part = 2 * torch.randn(3, 70, generator=g)
    whole = torch.full((3, 900), -torch.inf)
    whole[:, ids.long()] = part
    score = -torch.rand(3, generator=g)
    laws = (ints(7), torch.ones(1), torch.tensor([5]), ints(1))
    want = ops.build_tree(whole, score, ints(0, 3), *laws, width=40, rule=rule)
    got = ops.build_tree(part, score, ints(0, 3), *laws, ids, width=40, rule=rule)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(
        got[2], want[2], rtol=2.0**-22, atol=1e-6
    )  # sums of 70 terms, in another order


def test_ids_far_apart() -> None:
    """Noise is made for the columns' tokens alone: up to the largest id it would take gigabytes."""
    logits = torch.randn(2, 3, generator=torch.Generator().manual_seed(9))
    ids = ints(0, 2**30, 2**31 - 1)
    laws = (ints(7), torch.ones(1), torch.tensor([5]), ints(1))
    call = (logits, torch.zeros(2), ints(0, 2), *laws, ids)
    got, want = (ops.build_tree(*call, width=6, backend=name) for name in (None, "spec"))
    assert sorted(want[0][0].tolist()) == sorted(2 * ids.tolist())
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("cu_t", 1, 6, "cu_t[1] must be in [0, 5], got 6"),
        ("cu_t", 2, 4, "cu_t[2] must be 5, got 4"),
        ("position", 1, -1, "position[1] must be >= 0, got -1"),
        ("temperature", 0, -1.0, "temperature[0] must be finite and >= 0, got -1"),
        ("ids", 0, -1, "ids[0] must be above the one before it, from 0, got -1"),
        ("ids", 3, 2, "ids[3] must be above the one before it, from 0, got 2"),
        ("width", None, 0, "width must be in [1, 1024], got 0"),
        ("width", None, 1025, "width must be in [1, 1024], got 1025"),
        ("rule", None, "iid", "rule must be deterministic|shared_noise, got iid"),
    ],
)
@pytest.mark.parametrize("backend", [None, "spec"])
def test_bad_values_are_refused(
    backend: str | None, name: str, index: int | None, value: float | str, message: str
) -> None:
    case = next(iter(spec.build_tree.cases()))
    terms = (term.name for term in spec.build_tree.inputs)
    call = {**{t: a.clone() for t, a in zip(terms, case.args, strict=True) if a is not None}, **case.kwargs}
    call["ids"] = torch.arange(call["logits"].size(1)).int()
    if index is None:
        call[name] = value
    else:
        call[name][index] = value
    assert error_of(lambda: ops.build_tree(**call, backend=backend)) == (ValueError, f"build_tree: {message}")


def test_empty_vocabulary_is_refused() -> None:
    args = (torch.empty(1, 0), torch.zeros(1), ints(0, 1), ints(0), torch.ones(1), torch.tensor([0]), ints(0))
    message = "build_tree: logits must be [T, V] with V >= 1, got V=0"
    assert error_of(lambda: ops.build_tree(*args, width=1)) == (ValueError, message)
