# SPDX-License-Identifier: Apache-2.0
"""Runs the README's own examples: each fenced sh or python block that follows a line `<!-- run in CI -->`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- run in CI -->\n+```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LIMIT_SECONDS = 600


def blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of every marked block."""
    return [(match[1], match[2]) for match in BLOCK.finditer(text)]


def run(language: str, code: str) -> int:
    """Run one block with this interpreter's environment first on the path; its exit code."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-"] if language == "python" else ["bash", "-euo", "pipefail"]
    done = subprocess.run(
        command, input=code, text=True, cwd=ROOT, env={**os.environ, "PATH": path}, timeout=LIMIT_SECONDS
    )
    return done.returncode


def main() -> int:
    found = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    if not found:
        print("error: README.md has no block marked <!-- run in CI -->", file=sys.stderr)
        return 1
    for language, code in found:
        print(f"--- README.md, {language} ---\n{code}", flush=True)
        if (exit_code := run(language, code)) != 0:
            print(f"error: this block of README.md ended with exit code {exit_code}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
