# SPDX-License-Identifier: Apache-2.0
"""Which verifier is exact for which tree; every other pair is refused with its reason (promise 2).

The biases are total variation distances of three tokens by exact enumeration (vocabulary 3, tree 2x2).
"""

from __future__ import annotations

from pyspec.errors import UnsupportedError

from .token_tree import Drawn, TokenTree

_ANY = frozenset((drawn, pruned) for drawn in Drawn for pruned in (False, True))

# Verifier -> the (drawing rule, pruned) pairs for which its output law is exactly the target's. Both walk the
# tree along tokens that the target picks without looking at it, so no tree can bias them.
EXACT_VERIFIERS: dict[str, frozenset[tuple[Drawn, bool]]] = {"greedy": _ANY, "shared_noise": _ANY}

# Known verifiers that this version does not have: the one rule they are exact for, and their bias on others.
_UNAVAILABLE: dict[str, tuple[Drawn, dict[Drawn, float]]] = {
    "rejection_iid": (
        Drawn.IID,
        {Drawn.DETERMINISTIC: 0.3188, Drawn.WITHOUT_REPLACEMENT: 0.0131, Drawn.HYBRID: 0.3704},
    ),
    "rejection_without_replacement": (
        Drawn.WITHOUT_REPLACEMENT,
        {Drawn.DETERMINISTIC: 0.3188, Drawn.IID: 0.0146, Drawn.HYBRID: 0.4047},
    ),
    "traversal_hybrid": (
        Drawn.HYBRID,
        {Drawn.DETERMINISTIC: 0.2904, Drawn.IID: 0.1589, Drawn.WITHOUT_REPLACEMENT: 0.1703},
    ),
}


def check_verifier(verifier: str, tree: TokenTree) -> None:
    """Returns if `verifier` is exact for `tree`.

    ValueError for an unknown name, UnsupportedError with the reason for a pair that would be biased and for a
    verifier that is not implemented.
    """
    exact = EXACT_VERIFIERS.get(verifier)
    if exact is not None:
        if (tree.drawn, tree.pruned) not in exact:
            raise UnsupportedError(_refusal(verifier, tree, "no proof of exactness for this pair"))
        return
    if verifier not in _UNAVAILABLE:
        names = ", ".join([*EXACT_VERIFIERS, *_UNAVAILABLE])
        raise ValueError(f"check_verifier: verifier must be one of {names}, got {verifier!r}")
    rule, bias = _UNAVAILABLE[verifier]
    if tree.drawn in bias:
        distance = bias[tree.drawn]
        reason = f"it is exact for trees drawn {rule.value} alone (total variation {distance} measured)"
    elif tree.drawn is not rule:
        reason = f"it is exact for trees drawn {rule.value} alone"
    elif tree.pruned:
        reason = "removing drawn children biases it (total variation 0.085 to 0.21 measured)"
    else:
        reason = "it is exact for this tree but not implemented in this version"
    raise UnsupportedError(_refusal(verifier, tree, reason))


def _refusal(verifier: str, tree: TokenTree, reason: str) -> str:
    kind = f"{tree.drawn.value}{', pruned' if tree.pruned else ''}"
    usable = ", ".join(name for name, exact in EXACT_VERIFIERS.items() if (tree.drawn, tree.pruned) in exact)
    return (
        f"check_verifier: verifier must be exact for the tree ({kind}), "
        f"got {verifier!r}: {reason}; use {usable}"
    )
