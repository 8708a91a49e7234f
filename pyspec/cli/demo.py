# SPDX-License-Identifier: Apache-2.0
"""`pyspec demo`: one answer with token trees, the same answer plain, and whether all are the same text."""

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
PLAIN = "plain"
MAX_TOKENS_SPEC = 16  # the specification takes seconds a step


@click.command()
@click.option("--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME|PATH")
@click.option(
    "--max-tokens", type=click.IntRange(2), help=f"Default: {MAX_TOKENS}; {MAX_TOKENS_SPEC} without kernels."
)
@click.option("--threads", type=click.IntRange(1), help="Threads; default: the cores this process may use.")
@click.option("--quiet", is_flag=True, help="Print the table alone.")
def demo(model: str, max_tokens: int | None, threads: int | None, quiet: bool) -> int:
    """Stream an answer with tree speculation, repeat it plain, and compare; exit code 1 if the texts differ.

    Where a draft head comes with the package for the model, its drafts are shown as well.
    """
    from pyspec.drafts.heads.shipped import shipped
    from pyspec.engine import LLM, SamplingParams

    llm = load_model(
        {"model": model, "speculation": "suffix", "context": None, "threads": threads}, quiet=quiet
    )
    compiled = llm.executor_name != "spec"
    params = SamplingParams(max_tokens=max_tokens or (MAX_TOKENS if compiled else MAX_TOKENS_SPEC))
    ways = {PLAIN: (llm, "off"), "suffix tree": (llm, "suffix")}
    if compiled and shipped(llm.checkpoint) is not None:
        both = LLM(llm.checkpoint, draft=("suffix", "eagle3"), speculation="auto", max_batch=1)
        ways["with draft head"] = (both, "auto")  # the planner asks the head where the tree has nothing
    prompt = render_prompt(llm, PROMPT, None)
    answers = {}
    for name, (model_of_way, speculation) in reversed(ways.items()):
        asked = replace(params, speculation=speculation)
        if compiled:  # pages of weights and code come in before the clock runs
            list(model_of_way.stream(prompt, replace(asked, max_tokens=2)))
        if not quiet:
            print(f"--- {model}, {name} ---", file=sys.stderr)
        answers[name] = stream_answer(model_of_way, prompt, asked, echo=not quiet)
    plain = answers[PLAIN]
    same = all(one.text == plain.text and one.token_ids == plain.token_ids for one in answers.values())
    print_table(llm.executor_name, {name: answers[name] for name in ways}, same)
    if not same:
        raise click.ClickException("demo: speculative and plain text must be identical, got a difference")
    return 0


def print_table(backend: str, answers: dict[str, Answer], same: bool) -> None:
    """The result in one short table, the plain answer first."""
    from rich.console import Console
    from rich.table import Table

    plain_speed = answers[PLAIN].stats.tokens_per_second
    table = Table("", *answers, title="speculative decoding", title_justify="left")
    stats = [answer.stats for answer in answers.values()]
    rows: list[tuple[Any, ...]] = [
        ("backend", *[backend] * len(stats)),
        ("tokens", *[one.output_tokens for one in stats]),
        ("tokens/s", *[f"{one.tokens_per_second:.1f}" for one in stats]),
        ("ratio", *[f"{one.tokens_per_second / plain_speed:.2f}x" if plain_speed else "-" for one in stats]),
        ("tokens a step", *[f"{one.mean_accepted_length:.2f}" for one in stats]),
        ("identical text", "", *["yes" if same else "NO"] * (len(stats) - 1)),
    ]
    for row in rows:
        table.add_row(*map(str, row))
    Console().print(table)
