# SPDX-License-Identifier: Apache-2.0
"""Checks what is in dist/: the sdist is complete, and the wheel works from an empty environment and another folder."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
ROOMS = ("csrc", "kernels", "pyspec", "tests", "bench", "tools", "docs")
GPU_ONLY = {"build_tree", "fp8_linear", "rms_norm_quantize"}  # kernels for GPUs; the specification on CPUs


def check_sdist(path: Path) -> None:
    """Every tracked file of the rooms must be in the sdist."""
    tracked = subprocess.run(
        ["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    with tarfile.open(path) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    if missing := sorted(set(tracked.stdout.split()) - packed):
        sys.exit(f"error: {path.name} must hold every tracked file, got none of {', '.join(missing)}")
    print(f"{path.name}: complete")


def check_wheel(path: Path) -> None:
    """Install into an empty environment beside this one's torch, and run it from an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(f"{folder}/venv", with_pip=True)
        python = f"{folder}/venv/bin/python"
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", f"torch=={torch.__version__}", str(path)], check=True
        )
        done = subprocess.run(
            [f"{folder}/venv/bin/pyspec", "info", "--json"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        )
        facts = json.loads(done.stdout)
        without = {op for op, kernels in facts["ops"].items() if "cpu" not in kernels}
        if uncompiled := sorted(without - GPU_ONLY):
            sys.exit(
                f"error: {path.name} must have CPU kernels of every op, got none of {', '.join(uncompiled)}"
            )
        for arguments in (("bench", "--help"), ("generate", "Say hello.", "--max-tokens", "8")):
            subprocess.run([f"{folder}/venv/bin/pyspec", *arguments], cwd=folder, check=True)
        print(f"{path.name}: installs into an empty environment and runs ({facts['isa']})")


def main() -> None:
    (sdist,), (wheel,) = (list((ROOT / "dist").glob(pattern)) for pattern in ("*.tar.gz", "*.whl"))
    check_sdist(sdist)
    check_wheel(wheel)


if __name__ == "__main__":
    main()
