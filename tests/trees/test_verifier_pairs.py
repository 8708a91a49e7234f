# SPDX-License-Identifier: Apache-2.0
"""Every verifier with every kind of tree: exact or refused with its reason; how the nodes of a tree were drawn."""

from __future__ import annotations

import numpy as np
import pytest

from pyspec.errors import UnsupportedError
from pyspec.spec.rejection import WALKS
from pyspec.trees import VERIFIERS, Drawn, TokenTree, check_verifier
from pyspec.trees.verifiers import how_drawn, refusal, verifier_named

SAMPLED = {Drawn.IID, Drawn.WITHOUT_REPLACEMENT, Drawn.HYBRID}


def tree(drawn: Drawn, pruned: bool = False, chain: bool = False) -> TokenTree:
    parents = [-1, 0, 1, 2] if chain else [-1, 0, 0, 1]
    return TokenTree(np.array([5, 6, 7, 8], dtype=np.int32), np.array(parents, dtype=np.int32), drawn, pruned)


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("drawn", Drawn)
@pytest.mark.parametrize("name", VERIFIERS)
def test_every_pair_is_exact_or_refused(name: str, drawn: Drawn, pruned: bool, chain: bool) -> None:
    looks_at_the_tree = name in ("block", "top_down", "traversal")
    refused = looks_at_the_tree and ((pruned and drawn in SAMPLED) or (name == "block" and not chain))
    if refused:
        with pytest.raises(UnsupportedError, match=f"got '{name}': .*; use shared_noise, greedy, target"):
            check_verifier(name, tree(drawn, pruned, chain))
    else:
        check_verifier(name, tree(drawn, pruned, chain))


def test_refusals_name_their_reason() -> None:
    assert refusal("traversal", Drawn.HYBRID, pruned=True) == (
        "verifier must be exact for trees (hybrid, pruned), got 'traversal': removing drawn children biases it "
        "(total variation 0.085 to 0.21 measured); use shared_noise, greedy, target"
    )
    assert refusal("block", Drawn.IID) == (
        "verifier must be exact for trees (iid), got 'block': block verification is for chains; on trees it is 'traversal'; "
        "use shared_noise, greedy, target, top_down, traversal"
    )
    assert refusal("block", Drawn.IID, chain=True) == ""


def test_unknown_names_are_refused() -> None:
    message = "^verifier: name must be shared_noise.greedy.target.block.top_down.traversal, got 'typical'$"
    with pytest.raises(ValueError, match=message):
        check_verifier("typical", tree(Drawn.IID))
    with pytest.raises(ValueError, match=message):
        verifier_named("typical")


def test_walks_are_those_of_the_op() -> None:
    assert {verifier.walk for verifier in VERIFIERS.values()} == {"", *WALKS}


def test_how_the_nodes_were_drawn() -> None:
    parents = np.array([-1, 0, 0, 1, 0, 1, 3], dtype=np.int32)
    of = lambda drawn: how_drawn(TokenTree(np.arange(7, dtype=np.int32), parents, drawn)).tolist()
    assert of(Drawn.DETERMINISTIC) == of(Drawn.SHARED_NOISE) == [0] * 7
    assert of(Drawn.IID) == [0] + [1] * 6
    assert of(Drawn.WITHOUT_REPLACEMENT) == [0] + [2] * 6
    assert of(Drawn.HYBRID) == [0, 2, 0, 2, 0, 0, 2]
    assert how_drawn(tree(Drawn.HYBRID)).dtype == np.int32
