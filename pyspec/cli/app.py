# SPDX-License-Identifier: Apache-2.0
"""The command group, and how every command ends: errors are one line on stderr, never a traceback for bad input.

Exit codes: 0 done, 1 an error (or texts that differ), 2 wrong usage, 3 no GPU for a command that needs one,
130 stopped by Ctrl-C, 141 the reader of stdout left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from pyspec import __version__
from pyspec.cli.bench import bench
from pyspec.cli.chat import chat
from pyspec.cli.demo import demo
from pyspec.cli.explain import explain
from pyspec.cli.fetch import fetch
from pyspec.cli.generate import generate
from pyspec.cli.info import info
from pyspec.cli.trace import trace
from pyspec.cli.train_draft import train_draft
from pyspec.cli.tune import tune

EXPECTED = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    RuntimeError,
)  # what bad input and a bad machine raise


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pyspec")
def cli() -> None:
    """Exact and fast speculative decoding with token trees: the same text as plain decoding, sooner."""


for command in (generate, chat, info, fetch, bench, demo, tune, train_draft, trace, explain):
    cli.add_command(command)


def main(args: Sequence[str] | None = None) -> None:
    """Run one command line (default: sys.argv) and exit with its code."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    return invoke(cli, "pyspec", sys.argv[1:] if args is None else args)


def invoke(command: click.Command, name: str, args: Sequence[str]) -> int:
    """Run a click command and return its exit code, its errors printed as one line."""
    try:
        with command.make_context(name, list(args)) as context:
            result = command.invoke(context)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as end:  # --help and --version
        return end.exit_code
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the flush at exit must not fail again
        return 141
    except EXPECTED as error:
        _complain(str(error) or type(error).__name__)
        return 1


def _complain(message: str) -> None:
    lines = (line.strip() for line in message.splitlines())
    print("error: " + "; ".join(line for line in lines if line), file=sys.stderr)
