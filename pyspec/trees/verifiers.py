# SPDX-License-Identifier: Apache-2.0
"""Which verifier is exact for which tree; every other pair is refused with its reason (promise 2).

`greedy` and `shared_noise` walk along tokens that the target picks by its own noise (verify_tree), `target`
along fresh ones: none of them looks at the tree, so no tree can bias them. The others reject by how each
child was drawn (verify_drawn), which the tree itself says: a law that differs from the drawing cannot be
asked for. What is left to refuse is removing drawn children. Figures: total variation by exact enumeration,
tests/verification; docs/ops/verification.md has the table of all pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyspec.errors import UnsupportedError

from .token_tree import Drawn, TokenTree

FIXED = frozenset((Drawn.DETERMINISTIC, Drawn.SHARED_NOISE))  # of what is verified with other randomness


@dataclass(frozen=True)
class Verifier:
    """How trees are verified.

    walk       of verify_drawn; "": verify_tree
    exact      (drawing rule, pruned) pairs for which what it emits follows the target's law exactly
    chains     for chains alone
    greedy     for requests without sampling alone
    """

    walk: str
    exact: frozenset[tuple[Drawn, bool]]
    chains: bool = False
    greedy: bool = False


_ANY = frozenset((drawn, pruned) for drawn in Drawn for pruned in (False, True))
_AS_DRAWN = frozenset((drawn, False) for drawn in Drawn) | {(drawn, True) for drawn in FIXED}

VERIFIERS: dict[str, Verifier] = {
    "shared_noise": Verifier("", _ANY),
    "greedy": Verifier("", _ANY, greedy=True),
    "target": Verifier("target", _ANY),
    "block": Verifier("traversal", _AS_DRAWN, chains=True),
    "top_down": Verifier("top_down", _AS_DRAWN),
    "traversal": Verifier("traversal", _AS_DRAWN),
}
PRUNING_BIAS = "removing drawn children biases it (total variation 0.085 to 0.21 measured)"


def verifier_named(name: str) -> Verifier:
    """ValueError for an unknown name."""
    if name not in VERIFIERS:
        raise ValueError(f"verifier: name must be {'|'.join(VERIFIERS)}, got {name!r}")
    return VERIFIERS[name]


def refusal(name: str, drawn: Drawn, *, pruned: bool = False, chain: bool = False) -> str:
    """Why a verifier must not see trees of this kind, or "": it is exact for them. ValueError for an unknown name."""
    verifier = verifier_named(name)
    if (drawn, pruned) not in verifier.exact:
        reason = PRUNING_BIAS
    elif verifier.chains and not chain:
        reason = "block verification is for chains; on trees it is 'traversal'"
    else:
        return ""
    kind = f"{drawn.value}{', pruned' if pruned else ''}{', chain' if chain else ''}"
    usable = [
        other for other, v in VERIFIERS.items() if (drawn, pruned) in v.exact and (chain or not v.chains)
    ]
    return f"verifier must be exact for trees ({kind}), got {name!r}: {reason}; use {', '.join(usable)}"


def check_verifier(name: str, tree: TokenTree) -> None:
    """Returns if the verifier is exact for the tree; UnsupportedError with the reason if not, ValueError for an unknown name."""
    reason = refusal(name, tree.drawn, pruned=tree.pruned, chain=tree.is_chain)
    if reason:
        raise UnsupportedError(f"check_verifier: {reason}")


def how_drawn(tree: TokenTree) -> NDArray[np.int32]:
    """int32 [T]: `drawn` of verify_drawn for every node: 0 deterministic, 1 iid, 2 without replacement.

    The first child of a hybrid node is the one that was drawn. Where its law had no token beside the likeliest ones, the first of
    those stands there: then it is all that is left to draw from, and 2 is right for it too.
    """
    kinds = {Drawn.IID: 1, Drawn.WITHOUT_REPLACEMENT: 2, Drawn.HYBRID: 2}
    result = np.full(len(tree), kinds.get(tree.drawn, 0), dtype=np.int32)
    result[0] = 0
    if tree.drawn is Drawn.HYBRID:
        _, first = np.unique(tree.parents, return_index=True)
        later = np.ones(len(tree), dtype=bool)
        later[first] = False
        result[later] = 0
    return result
