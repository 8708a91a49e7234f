# SPDX-License-Identifier: Apache-2.0
"""`pyspec demo`: one answer with a token tree, the same answer plain, and whether the two are the same text."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import click

from pyspec.cli.answer import Answer, stream_answer
from pyspec.cli.options import DEFAULT_MODEL, load_model, render_prompt

TEXT = """\
The harbour of Brannock was built in 1821 by the brothers Ewan and Colin Mackay, who needed a safe landing for their
herring boats. Within thirty years it had become the busiest harbour on the coast, with more than two hundred boats in
the season and a railway that carried the catch to the cities in a single night. The herring went away in the years
after 1910, and with it the trade. Today the harbour of Brannock shelters a few lobster boats, a sailing school and, in
summer, the ferry to the islands. The old salting house has become a museum, where visitors can see how the herring
were packed and read the letters that Ewan Mackay wrote to his brother during the building of the northern pier.
"""
PROMPT = f"{TEXT}\n\nSummarise the text above. Quote its sentences where you can.\n"
MAX_TOKENS = 256
MAX_TOKENS_SPEC = 16  # the specification takes seconds a step


@click.command()
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME|PATH")
@click.option(
    "--max-tokens", type=click.IntRange(2), help=f"Default: {MAX_TOKENS}; {MAX_TOKENS_SPEC} without kernels."
)
@click.option("--threads", type=click.IntRange(1), help="Threads; default: the cores this process may use.")
@click.option("--quiet", is_flag=True, help="Print the table alone.")
def demo(model: str, max_tokens: int | None, threads: int | None, quiet: bool) -> int:
    """Stream an answer with tree speculation, repeat it plain, and compare; exit code 1 if the texts differ."""
    from pyspec.engine import SamplingParams

    llm = load_model(
        {"model": model, "speculation": "suffix", "context": None, "threads": threads}, quiet=quiet
    )
    compiled = llm.executor_name != "spec"
    params = SamplingParams(max_tokens=max_tokens or (MAX_TOKENS if compiled else MAX_TOKENS_SPEC))
    prompt = render_prompt(llm, PROMPT, None)
    if compiled:  # pages of weights and code come in before the clock runs
        list(llm.stream(prompt, replace(params, max_tokens=2)))
    answers = []
    for name, speculation in (("with a token tree", "suffix"), ("plain", "off")):
        if not quiet:
            print(f"--- {model}, {name} ---", file=sys.stderr)
        answers.append(stream_answer(llm, prompt, replace(params, speculation=speculation), echo=not quiet))
    tree, plain = answers
    same = tree.text == plain.text and tree.token_ids == plain.token_ids
    print_table(llm.executor_name, tree, plain, same)
    if not same:
        raise click.ClickException("demo: speculative and plain text must be identical, got a difference")
    return 0


def print_table(backend: str, tree: Answer, plain: Answer, same: bool) -> None:
    """The result in one short table."""
    from rich.console import Console
    from rich.table import Table

    speed, plain_speed = tree.stats.tokens_per_second, plain.stats.tokens_per_second
    table = Table("", "plain", "token tree", title="speculative decoding", title_justify="left")
    rows: list[tuple[Any, ...]] = [
        ("backend", backend, backend),
        ("tokens", plain.stats.output_tokens, tree.stats.output_tokens),
        ("tokens/s", f"{plain_speed:.1f}", f"{speed:.1f}"),
        ("ratio", "1.00x", f"{speed / plain_speed:.2f}x" if plain_speed else "-"),
        (
            "tokens a step",
            f"{plain.stats.mean_accepted_length:.2f}",
            f"{tree.stats.mean_accepted_length:.2f}",
        ),
        ("identical text", "", "yes" if same else "NO"),
    ]
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)
