# SPDX-License-Identifier: Apache-2.0
"""verify_tree: a walk emits what plain decoding emits, whatever the tree; a tree of one node is `sample`; refusals."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from contract_tests import error_of, needs_native
from sampling_fuzz import bits, tree_call
from torch import Tensor

from pyspec import ops, spec
from pyspec.contract import Case

VOCAB, LENGTH, WINDOW = 13, 40, 3  # the synthetic model looks at the last WINDOW tokens
LawValues = tuple[float, int, float, float, float]
LAWS: list[LawValues] = [  # temperature, top_k, top_p, min_p, typical_p
    (0.0, 0, 1.0, 0.0, 1.0), (0.7, 0, 1.0, 0.0, 1.0), (1.0, 0, 0.8, 0.0, 1.0), (1.0, 4, 1.0, 0.0, 1.0),
    (1.3, 6, 0.9, 0.1, 1.0), (0.9, 0, 1.0, 0.2, 1.0), (1.1, 0, 1.0, 0.0, 0.7), (0.9, 9, 0.95, 0.02, 0.8),
]  # fmt: skip


def model(context: list[int]) -> Tensor:
    """Logits [VOCAB] that depend on the context alone, with ties."""
    key = 0
    for token in context[-WINDOW:]:
        key = key * VOCAB + token + 1
    g = torch.Generator().manual_seed(key)
    return (4 * torch.randn(VOCAB, generator=g)).round() / 2


def parameters(law: LawValues, seed: int, stream: int) -> tuple[Tensor, ...]:
    dtypes = ("float32", "int32", "float32", "float32", "float32", "int64", "int32")
    values = zip((*law, seed, stream), dtypes, strict=True)
    return tuple(torch.tensor([value], dtype=getattr(torch, dtype)) for value, dtype in values)


def edited_rows(logits: Tensor, tokens: list[int], parents: list[int], context: list[int]) -> Tensor:
    """Rows of a tree whose root is context[-1], with penalties for what is in the context and the path, a bias and a mask."""
    ints = lambda values: torch.tensor(values, dtype=torch.int32)
    counts, n = Counter(context), len(tokens)
    return ops.edit_logits(
        logits, ints(tokens), ints(parents), ints([0, n]), torch.tensor([1.3]), torch.tensor([0.4]), torch.tensor([0.25]),
        ints(list(counts)), ints(list(counts.values())), ints([0, len(counts)]), ints([2, 5]), torch.tensor([1.0, -torch.inf]),
        ints([0, 2]), ints([[0b1111111111101]]), torch.zeros(n).int(),
    )  # fmt: skip


def plain(
    root: int, position: int, law: tuple[Tensor, ...], edit: bool = False
) -> tuple[list[int], list[float]]:
    """Decoding one token a step with `sample`."""
    context, logprobs = [root], []
    for t in range(LENGTH):
        row = model(context)[None]
        edited = edited_rows(row, context[-1:], [-1], context) if edit else None
        token, logprob, *_ = ops.sample(row, torch.tensor([position + t + 1]).int(), *law, edited)
        context.append(int(token))
        logprobs.append(float(logprob))
    return context, logprobs


def random_tree(
    rng: random.Random, context: list[int], future: list[int]
) -> tuple[list[int], list[int], Tensor]:
    """Tokens, parents and logits of a tree under context[-1]: right and wrong guesses, equal siblings, cousins."""
    tokens, parents, paths = [context[-1]], [-1], [context]
    for i in range(1, rng.choice([1, 2, 5, 12, 30])):
        parent = rng.choice([i - 1, rng.randrange(i)])
        depth = len(paths[parent]) - len(context)
        right = depth < len(future) and rng.random() < 0.7
        token = future[depth] if right else rng.randrange(VOCAB)
        tokens.append(token)
        parents.append(parent)
        paths.append([*paths[parent], token])
    return tokens, parents, torch.stack([model(path) for path in paths])


@pytest.mark.parametrize("edit", [False, True], ids=["raw", "edited"])
@pytest.mark.parametrize("law", LAWS, ids=str)
def test_walks_of_random_trees_equal_plain_decoding(law: LawValues, edit: bool) -> None:
    rng, steps, walks = random.Random(str(law)), 0, 0
    for seed in range(8):
        root, position, stream = rng.randrange(VOCAB), rng.randrange(1000), seed % 3
        tensors = parameters(law, seed, stream)
        want, want_logprobs = plain(root, position, tensors, edit)
        assert not edit or not {1, 5} & set(want[1:])
        for _ in range(2):  # the same text by other trees
            context, logprobs = [root], []
            while len(context) < LENGTH - 2:
                tokens, parents, logits = random_tree(rng, context, want[len(context) :])
                edited = edited_rows(logits, tokens, parents, context) if edit else None
                path, path_len, emitted, step_logprobs, *_ = ops.verify_tree(
                    logits, torch.tensor(tokens).int(), torch.tensor(parents).int(), torch.tensor([0, len(tokens)]).int(),
                    torch.tensor([position + len(context) - 1]).int(), *tensors, edited, max_path=len(tokens),
                )  # fmt: skip
                n = int(path_len)
                new = emitted[0, :n].tolist()
                assert [tokens[i] for i in path[0, 1:n].tolist()] == new[:-1]
                assert emitted[0, n:].tolist() == path[0, n:].tolist() == [-1] * (len(tokens) - n)
                context += new
                logprobs += step_logprobs[0, :n].tolist()
                steps, walks = steps + n, walks + 1
            shared = min(len(context), len(want))
            assert context[:shared] == want[:shared]
            assert logprobs[: shared - 1] == want_logprobs[: shared - 1]
    assert walks > 100
    assert steps > 1.5 * walks  # the trees were right often enough for the walk to be tested


@pytest.mark.parametrize("name", ["T16-V130-N5", "T16-V130-N5-edited"])
@pytest.mark.parametrize("backend", ["spec", pytest.param("cpu", marks=needs_native)])
def test_a_tree_of_one_node_is_sample(backend: str, name: str) -> None:
    case = next(c for c in spec.sample.cases() if c.name == name)
    logits, positions, *law = case.args
    n = positions.numel()
    roots, offsets = torch.full((n,), -1, dtype=torch.int32), torch.arange(n + 1).int()
    path, path_len, *got = ops.verify_tree(
        logits,
        torch.zeros(n).int(),
        roots,
        offsets,
        positions - 1,
        *law,
        max_path=1,
        num_logprobs=5,
        backend=backend,
    )
    assert path.tolist() == [[0]] * n
    assert path_len.tolist() == [1] * n
    for a, b in zip(got, ops.sample(*case.args, num_logprobs=5, backend=backend), strict=True):
        assert torch.equal(bits(a[:, 0]), bits(b))


@needs_native
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in spec.verify_tree.cases()])
def test_kernel_equals_specification_on_the_cases(case: Case) -> None:
    want = spec.verify_tree.run(*case.args, **case.kwargs)
    for a, b in zip(want, torch.ops.pyspec.verify_tree(*case.args, **case.kwargs), strict=True):
        assert torch.equal(bits(a), bits(b))


def greedy_call() -> dict[str, Tensor | int]:
    """Two requests and an empty one between them; at temperature 0 node t picks token (t + 1) % 8."""
    ints = lambda *values: torch.tensor(values, dtype=torch.int32)
    logits = torch.roll(torch.eye(8), 1, dims=1)[:6]
    return {
        "logits": logits, "tokens": ints(7, 1, 1, 2, 0, 5), "parents": ints(-1, 0, 0, 1, -1, 0), "cu_t": ints(0, 4, 4, 6),
        "position": ints(5, 0, 9), "temperature": torch.zeros(3), "top_k": ints(0, 0, 0), "top_p": torch.ones(3),
        "min_p": torch.zeros(3), "typical_p": torch.ones(3), "seed": torch.zeros(3, dtype=torch.int64), "stream": ints(0, 0, 0), "max_path": 4,
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["spec", pytest.param("cpu", marks=needs_native)])
def test_walk_takes_the_first_of_equal_siblings_and_skips_empty_requests(backend: str) -> None:
    path, path_len, emitted, logprobs, *_ = ops.verify_tree(**greedy_call(), backend=backend)  # type: ignore[arg-type]
    assert path.tolist() == [[0, 1, 3, -1], [-1] * 4, [0, 1, -1, -1]]
    assert emitted.tolist() == [[1, 2, 4, -1], [-1] * 4, [5, 6, -1, -1]]
    assert path_len.tolist() == [3, 0, 2]
    assert ((logprobs == 0) == (path == -1)).all()


@pytest.mark.parametrize("backend", ["spec", pytest.param("cpu", marks=needs_native)])
def test_rows_that_are_not_walked_are_not_read(backend: str) -> None:
    call = greedy_call()
    want = ops.verify_tree(**call, backend=backend)  # type: ignore[arg-type]
    call["logits"][2] = torch.nan  # type: ignore[index]
    for a, b in zip(want, ops.verify_tree(**call, backend=backend), strict=True):  # type: ignore[arg-type]
        assert torch.equal(a, b)


def test_requests_do_not_depend_on_the_batch() -> None:
    args, kwargs = next(
        call for call in map(tree_call, map(random.Random, range(99))) if call[0][4].numel() == 4
    )
    logits, tokens, parents, cu_t, *law = args[:12]
    edited = args[12:]
    whole = ops.verify_tree(*args, **kwargs)
    for b in range(4):
        nodes = slice(int(cu_t[b]), int(cu_t[b + 1]))
        one = (
            logits[nodes],
            tokens[nodes],
            parents[nodes],
            cu_t[b : b + 2] - cu_t[b],
            *(t[b : b + 1] for t in law),
            *(t[nodes] for t in edited),
        )
        for a, w in zip(ops.verify_tree(*one, **kwargs), whole, strict=True):
            assert torch.equal(bits(a[0]), bits(w[b]))


@pytest.mark.parametrize(
    ("name", "index", "value", "message"),
    [
        ("tokens", 3, 8, "tokens[3] must be in [0, 8), got 8"),
        ("tokens", 0, -1, "tokens[0] must be in [0, 8), got -1"),
        ("parents", 0, 0, "parents[0] must be -1, got 0"),
        ("parents", 2, 2, "parents[2] must be in [0, 2), got 2"),
        ("parents", 3, -1, "parents[3] must be in [0, 3), got -1"),
        ("parents", 4, 1, "parents[4] must be -1, got 1"),
        ("cu_t", 0, 1, "cu_t[0] must be 0, got 1"),
        ("cu_t", 2, 3, "cu_t[2] must be in [4, 6], got 3"),
        ("cu_t", 2, 7, "cu_t[2] must be in [4, 6], got 7"),
        ("cu_t", 3, 5, "cu_t[3] must be 6, got 5"),
        ("position", 1, -4, "position[1] must be >= 0, got -4"),
        ("top_p", 2, 0, "top_p[2] must be in (0, 1], got 0"),
        ("max_path", None, 2, "max_path must be >= 3 (nodes of the longest path), got 2"),
        ("max_path", None, -1, "max_path must be >= 3 (nodes of the longest path), got -1"),
        ("num_logprobs", None, 9, "num_logprobs must be in [0, 8], got 9"),
    ],
)
@pytest.mark.parametrize("backend", ["spec", pytest.param("cpu", marks=needs_native)])
def test_bad_values_are_refused(name: str, index: int | None, value: int, message: str, backend: str) -> None:
    call = greedy_call()
    if index is None:
        call[name] = value
    else:
        call[name][index] = value  # type: ignore[index]
    assert error_of(lambda: ops.verify_tree(**call, backend=backend)) == (
        ValueError,
        f"verify_tree: {message}",
    )  # type: ignore[arg-type]
