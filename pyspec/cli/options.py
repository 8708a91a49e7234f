# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, and the engine objects made from them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from pyspec.engine import LLM, RequestStats, SamplingParams

DEFAULT_MODEL = "smollm2-135m-instruct"
SPECULATION = ("off", "auto", "suffix", "ngram")
EXECUTORS = ("auto", "cuda", "triton", "compiled", "spec")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "max_tokens", "seed", "stop")
F = TypeVar("F", bound=Callable[..., Any])


def model_options(function: F) -> F:
    """Adds --model, --speculation, --context, --executor and --threads."""
    for option in (
        click.option(
            "--executor", type=click.Choice(EXECUTORS), default="auto", show_default=True,
            help="What runs the model: kernels on a GPU, or on the CPU.",
        ),
        click.option("--threads", type=click.IntRange(1), help="Threads; default: the cores this process may use."),
        click.option("--context", type=click.IntRange(16), help="Longest prompt with its answer, in tokens."),
        click.option(
            "--speculation", type=click.Choice(SPECULATION), default="auto", show_default=True,
            help="How drafts are made; the text does not depend on it.",
        ),
        click.option(
            "--model", default=DEFAULT_MODEL, show_default=True, metavar="NAME|PATH",
            help="Known name, GGUF file, or folder with config.json and safetensors.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def sampling_options(function: F) -> F:
    """Adds the options of SamplingParams; their ranges are checked there."""
    for option in (
        click.option("--stop", multiple=True, help="Text that ends the answer; may be given several times."),
        click.option(
            "--seed", type=int, default=0, show_default=True, help="The same seed gives the same text."
        ),
        click.option("--max-tokens", type=int, default=256, show_default=True, help="Longest answer."),
        click.option("--min-p", type=float, default=0.0, show_default=True, help="0 is off."),
        click.option("--top-p", type=float, default=1.0, show_default=True, help="1 is off."),
        click.option("--top-k", type=int, default=0, show_default=True, help="0 is off."),
        click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
    ):
        function = option(function)
    return function


def sampling_params(options: dict[str, Any]) -> SamplingParams:
    """SamplingParams from the parsed options of a command."""
    from pyspec.engine import SamplingParams

    return SamplingParams(**{name: options[name] for name in _SAMPLING})


def load_model(options: dict[str, Any], *, quiet: bool = False) -> LLM:
    """The model that the options name, ready for one request at a time; fetched first if its name is known."""
    from pyspec.engine import LLM

    set_threads(options["threads"])
    note = not quiet and sys.stderr.isatty()
    if note:
        print(f"loading {options['model']} ...", end="\r", file=sys.stderr, flush=True)
    llm = LLM(
        options["model"],
        speculation=options["speculation"],
        max_context=options["context"],
        max_batch=1,
        executor=options.get("executor", "auto"),
    )
    if note:
        print("\x1b[2K", end="", file=sys.stderr, flush=True)
    return llm


def set_threads(threads: int | None) -> None:
    """Threads of the compiled kernels and of torch; None leaves both as they are."""
    if threads is None:
        return
    import torch

    from pyspec import backends

    torch.set_num_threads(threads)
    if backends.native is not None:
        backends.native.set_num_threads(threads)


def render_prompt(llm: LLM, text: str, chat: bool | None) -> str | list[int]:
    """The text as the model reads it: in its chat template if `chat`, as it is if not; None decides by the model."""
    if chat is None:
        chat = llm.checkpoint.chat_template is not None
    return llm.chat_prompt([{"role": "user", "content": text}]) if chat else text


def stats_line(llm: LLM, stats: RequestStats, finish_reason: str) -> str:
    """One line of statistics for stderr."""
    return (
        f"[{stats.output_tokens} tokens, {stats.tokens_per_second:.1f} tokens/s, "
        f"{stats.mean_accepted_length:.2f} a step; prompt {stats.prompt_tokens} tokens in {stats.prefill_seconds:.2f} s; "
        f"{llm.executor_name}; ended by {finish_reason}]"
    )
