# SPDX-License-Identifier: Apache-2.0
"""`pyspec chat`: a conversation in the terminal."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

import click

from pyspec.cli.answer import stream_answer
from pyspec.cli.options import load_model, model_options, sampling_options, sampling_params, stats_line

if TYPE_CHECKING:
    from pyspec.engine import LLM, SamplingParams

HELP = "/exit leaves (Ctrl-D too), /reset forgets the conversation, Ctrl-C ends an answer"


@click.command()
@click.option("--system", help="System message that opens the conversation.")
@click.option("--quiet", is_flag=True, help="No statistics on standard error.")
@sampling_options
@model_options
def chat(system: str | None, quiet: bool, **options: Any) -> None:
    """Talk with a model. /exit or Ctrl-D leaves, /reset forgets, Ctrl-C ends an answer."""
    params = sampling_params(options)
    llm = load_model(options, quiet=quiet)
    if llm.checkpoint.chat_template is None:
        raise click.ClickException(f"chat: model must have a chat template, got {options['model']}")
    if importlib.util.find_spec("readline") and sys.stdin.isatty():
        import readline  # noqa: F401 - gives input() its line editing
    if not quiet:
        print(HELP, file=sys.stderr)
    talk(llm, params, system, quiet)


def talk(llm: LLM, params: SamplingParams, system: str | None, quiet: bool) -> None:
    """Read lines and answer them until /exit or the end of the input."""
    opening = [{"role": "system", "content": system}] if system else []
    history = list(opening)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except KeyboardInterrupt:
            print(f"\n{HELP}", file=sys.stderr)
            continue
        except EOFError:
            return
        if line == "/exit":
            return
        if line == "/reset":
            history = list(opening)
        elif line:
            history.append({"role": "user", "content": line})
            answer(llm, params, history, quiet)


def answer(llm: LLM, params: SamplingParams, history: list[dict[str, str]], quiet: bool) -> None:
    """Answer the last message of `history` and add the answer; a refused message is taken back."""
    parts: list[str] = []
    try:
        result = stream_answer(llm, llm.chat_prompt(history), params, echo=True, parts=parts)
        if result.error:
            print(f"error: {result.error}", file=sys.stderr)
        if not quiet:
            print(stats_line(llm, result.stats, result.finish_reason), file=sys.stderr)
    except KeyboardInterrupt:
        print("\n[ended by Ctrl-C]", file=sys.stderr)
    except ValueError as error:  # the conversation has outgrown the context
        print(f"error: {error}; /reset begins a new conversation", file=sys.stderr)
        history.pop()
        return
    history.append({"role": "assistant", "content": "".join(parts)})
