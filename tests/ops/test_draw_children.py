# SPDX-License-Identifier: Apache-2.0
"""draw_children: the law of each rule, laws that run out of tokens, numbers that no other draw uses, and refusals."""

from __future__ import annotations

import random

import pytest
import torch
from contract_tests import error_of, needs_native
from drawn_fuzz import children_call, ints
from sampling_fuzz import bits
from scipy.stats import chisquare
from torch import Tensor

from pyspec import ops, spec
from pyspec.contract import Case
from pyspec.spec import categorical, noise
from pyspec.spec.draw_children import RULES

LOGITS = torch.tensor([1.5, 0.3, -0.4, 2.0, 0.3, -1.0])
BACKENDS = ["spec", pytest.param("cpu", marks=needs_native)]


def one_row(
    logits: Tensor, count: int, rule: str, *, temperature: float = 1.0, seed: int = 5, stream: int = 1, step: int = 3,
    node: int = 2, width: int = 4, backend: str | None = None,
) -> tuple[list[int], list[float]]:  # fmt: skip
    token, log_q = ops.draw_children(
        logits[None], ints([count]), torch.tensor([temperature]), torch.tensor([seed]), ints([stream]), ints([step]),
        ints([node]), width=width, rule=rule, backend=backend,
    )  # fmt: skip
    return token[0].tolist(), log_q[0].tolist()


@needs_native
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in spec.draw_children.cases()])
def test_kernel_equals_specification_on_the_cases(case: Case) -> None:
    want = spec.draw_children.run(*case.args, **case.kwargs)
    for a, b in zip(want, torch.ops.pyspec.draw_children(*case.args, **case.kwargs), strict=True):
        assert torch.equal(bits(a), bits(b))


@needs_native
def test_kernel_equals_specification_on_hard_rows() -> None:
    rng = random.Random(11)
    for _ in range(150):
        args, kwargs = children_call(rng)
        want = spec.draw_children.run(*args, **kwargs)
        for a, b in zip(want, torch.ops.pyspec.draw_children(*args, **kwargs), strict=True):
            assert torch.equal(bits(a), bits(b))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_q_is_the_textbooks(rule: str, temperature: float) -> None:
    tokens, log_q = one_row(LOGITS, 4, rule, temperature=temperature)
    law = (LOGITS.double() / temperature).log_softmax(0)
    assert log_q == pytest.approx([float(law[x]) for x in tokens], abs=1e-6)


def pair_law(rule: str, temperature: float) -> Tensor:
    """Of the first two children [V, V], by the textbook."""
    q = (LOGITS.double() / temperature).softmax(0)
    if rule == "iid":
        return torch.outer(q, q)
    law = torch.zeros(q.numel(), q.numel(), dtype=torch.float64)
    if rule == "hybrid":
        rest = q.clone()
        rest[3] = 0.0  # the likeliest, which is the second child
        law[:, 3] = rest / rest.sum()
        return law
    for x in range(q.numel()):
        rest = q.clone()
        rest[x] = 0.0
        law[x] = q[x] * rest / rest.sum()
    return law


@needs_native
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_pairs_of_children_follow_the_distribution_of_their_rule(rule: str, temperature: float) -> None:
    count = 40_000
    rows = LOGITS.expand(count, -1)
    many = lambda value: torch.full((count,), value, dtype=torch.int32)
    token, _ = ops.draw_children(
        rows,
        many(2),
        torch.full((count,), temperature),
        torch.arange(count),
        many(0),
        many(7),
        many(0),
        width=2,
        rule=rule,
    )
    vocab, law = LOGITS.numel(), pair_law(rule, temperature).flatten()
    counts = torch.bincount((token[:, 0] * vocab + token[:, 1]).long(), minlength=vocab * vocab)
    assert (counts[law == 0] == 0).all()
    alive = law > 0
    assert chisquare(counts[alive].numpy(), (law[alive] * count).numpy()).pvalue > 1e-4
    if rule != "hybrid":  # the other two rules are seen to be others
        other = pair_law(
            "iid" if rule == "without_replacement" else "without_replacement", temperature
        ).flatten()
        assert (counts[other == 0] > 0).any() or chisquare(
            counts[other > 0].numpy(), (other[other > 0] * count).numpy()
        ).pvalue < 1e-9


def test_hybrid_takes_the_likeliest_others_in_order() -> None:
    for seed in range(50):
        tokens, _ = one_row(LOGITS, 4, "hybrid", seed=seed)
        assert tokens[1:] == [3, 0, 1]  # 1 before 4: equal values go by id
        assert tokens[0] in (2, 4, 5)
    assert one_row(LOGITS, 1, "hybrid")[0][1:] == [-1] * 3  # all of the law for the one child that is drawn


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("rule", "want"),
    [("without_replacement", [{0, 2}, {0, 2}, {-1}, {-1}]), ("hybrid", [{-1}, {2}, {0}, {-1}])],
)
def test_a_law_that_runs_out_gives_fewer_children(rule: str, want: list[set[int]], backend: str) -> None:
    logits = torch.tensor([0.0, -torch.inf, 1.0, torch.nan, -200.0])
    for seed in range(20):
        tokens, log_q = one_row(logits, 4, rule, seed=seed, backend=backend)
        assert all(x in allowed for x, allowed in zip(tokens, want, strict=True))
        assert [x == -1 for x in tokens] == [q == -torch.inf for q in log_q]
        assert len({x for x in tokens if x >= 0}) == 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_rows_without_a_law_have_no_children_and_temperature_zero_has_one_token(
    rule: str, backend: str
) -> None:
    assert one_row(torch.full((5,), torch.nan), 3, rule, backend=backend) == ([-1] * 4, [-torch.inf] * 4)
    tokens, log_q = one_row(LOGITS, 3, rule, temperature=0.0, backend=backend)
    assert {x for x in tokens if x >= 0} == {3}
    assert all(q == 0.0 for x, q in zip(tokens, log_q, strict=True) if x >= 0)


@pytest.mark.parametrize("rule", RULES)
def test_the_numbers_of_step_node_stream_and_seed_differ(rule: str) -> None:
    logits = torch.randn(200, generator=torch.Generator().manual_seed(1))
    base: dict[str, int] = {"seed": 5, "stream": 1, "step": 3, "node": 2}
    want = one_row(logits, 3, rule)[0]
    assert want == one_row(logits, 3, rule, **base)[0]
    for name in base:
        assert one_row(logits, 3, rule, **{**base, name: base[name] + 1})[0] != want


def test_numbers_of_one_purpose_are_no_others() -> None:
    """The counter keeps purpose, node, step, stream and item apart, and apart from the noise of tokens."""
    base = {"seed": 5, "stream": 1, "step": 3, "node": 2, "purpose": noise.DRAFT, "item": 1}
    changed = [{**base, name: base[name] + 1} for name in base]
    numbers = [noise.uniform(**key) for key in (base, *changed)]
    assert len(set(numbers)) == len(numbers)
    words = torch.stack(noise.philox((torch.tensor([0]), 3, 1, noise.TOKENS), 5)).flatten().tolist()
    assert int(noise.uniform(5, 1, 3, 0, noise.TOKENS) * 2**53) == (words[0] << 32 | words[1]) >> 11
    assert all(0 <= u < 1 for u in numbers)


def test_categorical_by_hand() -> None:
    """Lanes go one after another: weights of tokens 0, 32, 64 are passed before that of token 1."""
    weight = torch.zeros(70, dtype=torch.float64)
    weight[[0, 1, 32, 64]] = torch.tensor([1.0, 4.0, 2.0, 1.0], dtype=torch.float64)
    draws = [
        categorical.categorical(weight, u) for u in (0.0, 0.124, 0.125, 0.374, 0.375, 0.499, 0.5, 1 - 2**-53)
    ]
    assert draws == [0, 0, 32, 32, 64, 64, 1, 1]
    assert categorical.categorical(torch.zeros(3, dtype=torch.float64), 0.5) is None


def test_weights_of_what_cannot_be_drawn_are_zero() -> None:
    row = torch.tensor([0.0, -torch.inf, -87.0, -88.0, torch.nan])
    weight = categorical.plain_weights(row, 1.0)
    assert (weight > 0).tolist() == [True, False, True, False, False]  # 2^-126 is e^-87.3


def test_rows_do_not_depend_on_the_batch() -> None:
    case = next(c for c in spec.draw_children.cases() if c.name == "T6-V130-hybrid")
    whole = ops.draw_children(*case.args, **case.kwargs)
    for t in range(6):
        alone = ops.draw_children(*(a[t : t + 1] for a in case.args), **case.kwargs)
        for a, w in zip(alone, whole, strict=True):
            assert torch.equal(bits(a[0]), bits(w[t]))


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("count", 1, 5, "count[1] must be in [0, 4], got 5"),
        ("count", 0, -1, "count[0] must be in [0, 4], got -1"),
        ("temperature", 2, -1.0, "temperature[2] must be finite and >= 0, got -1"),
        ("step", 0, -2, "step[0] must be >= 0, got -2"),
        ("node", 1, 2**24, "node[1] must be in [0, 16777216), got 16777216"),
        ("width", None, 0, "width must be in [1, 1024], got 0"),
        ("width", None, 1025, "width must be in [1, 1024], got 1025"),
        ("rule", None, "top_k", "rule must be iid|without_replacement|hybrid, got top_k"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_values_are_refused(
    name: str, index: int | None, value: float | str, message: str, backend: str
) -> None:
    case = next(iter(spec.draw_children.cases()))
    terms = (term.name for term in spec.draw_children.inputs)
    call = {**{t: a.clone() for t, a in zip(terms, case.args, strict=True)}, **case.kwargs}
    if index is None:
        call[name] = value
    else:
        call[name][index] = value
    assert error_of(lambda: ops.draw_children(**call, backend=backend)) == (
        ValueError,
        f"draw_children: {message}",
    )


def test_empty_vocabulary_is_refused() -> None:
    message = "draw_children: logits must be [T, V] with V >= 1, got V=0"
    assert error_of(lambda: one_row(torch.empty(0), 1, "iid")) == (ValueError, message)
