# SPDX-License-Identifier: Apache-2.0
"""Environments of the engines that `e2e --peers` and `contention` compare with: `--install NAME,...` makes them, each by itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from .harness import GateError, Options, Row, make_row
from .peers.environments import PEERS, install, python_of
from .peers.peer_process import PeerError


def rows(options: Options) -> Iterator[Row]:
    """One row a peer: 1 if it is installed, 0 with the reason. GateError if one that was to be installed cannot be."""
    names = tuple(PEERS) if "all" in options.install else options.install
    if unknown := [name for name in names if name not in PEERS]:
        raise GateError(f"peers: install must be all or of {', '.join(PEERS)}, got {', '.join(unknown)}")
    failures = {}
    for name in names:
        print(f"installing {', '.join(PEERS[name].requirements)}", file=sys.stderr)
        try:
            install(name)
        except PeerError as error:
            failures[name] = str(error)
    for name, peer in PEERS.items():
        try:
            python_of(name)
            yield make_row("peers", ", ".join(peer.requirements), name, "installed", 1, "")
        except PeerError as error:
            yield make_row("peers", failures.get(name, str(error)), name, "installed", 0, "")
    if failures:
        raise GateError("; ".join(failures.values()))
