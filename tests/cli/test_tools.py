# SPDX-License-Identifier: Apache-2.0
"""The README's tools: marked blocks are found and run, figures come from the newest run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.harness import append_csv, make_row
from tools import readme_commands, readme_table

README = """\
<!-- run in CI -->
```sh
true
```

```sh
false
```

<!-- run in CI -->
```python
assert 1 + 1 == 2
```
"""


def test_marked_blocks_are_found() -> None:
    assert readme_commands.blocks(README) == [("sh", "true\n"), ("python", "assert 1 + 1 == 2\n")]


def test_blocks_run_and_fail() -> None:
    assert readme_commands.run("sh", "python -c 'import sys; print(sys.prefix)' | grep -q .\n") == 0
    assert readme_commands.run("sh", "false\ntrue\n") != 0
    assert readme_commands.run("python", "assert False\n") != 0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project with a README that wants figures."""
    monkeypatch.setattr(readme_table, "ROOT", tmp_path)
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path / "docs" / "results")
    (tmp_path / "README.md").write_text(f"head\n{readme_table.BEGIN}old\n{readme_table.END}tail\n")
    return tmp_path


def test_figures_without_a_run_say_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert readme_table.main(["--check"]) == 1
    assert "README.md's figures" in capsys.readouterr().err
    assert readme_table.main([]) == 0
    assert "Not measured yet" in (project / "README.md").read_text()
    assert readme_table.main(["--check"]) == 0


def test_figures_are_those_of_the_newest_run(project: Path) -> None:
    row = lambda metric, value, **rest: make_row("e2e", "chat", "cpu/avx2", metric, value, "tokens/s", **rest)
    rows = [
        row("plain_tokens_per_s", 100), row("spec_tokens_per_s", 150, peer="plain", ratio=1.5),
        row("mean_accepted_length", 1.75),
    ]  # fmt: skip
    path = project / "docs" / "results" / "e2e.csv"
    append_csv(path, rows, 2)
    lines = path.read_text().splitlines()
    date = lines[1].split(",")[0]
    lines[1] = lines[1].replace(date, f"{date[:10]}T00:00:00+00:00")  # a run writes rows as it measures
    older = [
        line.replace(line.split(",")[0], "2020-01-01T00:00:00+00:00").replace("150", "999")
        for line in lines[1:]
    ]
    path.write_text("\n".join([lines[0], *lines[1:], *older]) + "\n")
    readme_table.main([])
    text = (project / "README.md").read_text()
    assert "| chat | 100 | 150 | 1.50 | 1.75 |" in text
    assert "999" not in text
    assert text.startswith("head\n")
    assert text.endswith("tail\n")


def test_equality_is_summed(project: Path) -> None:
    rows = [
        make_row("equality", case, "cpu/avx2", metric, value, "")
        for case in ("greedy/suffix/batch1", "greedy/suffix/batch8")
        for metric, value in (
            ("prompts", 200),
            ("tokens", 1000),
            ("differing_tokens", 0),
            ("differing_logprob_bits", 3),
        )
    ]
    append_csv(project / "docs" / "results" / "equality.csv", rows, 2)
    readme_table.main([])
    text = (project / "README.md").read_text()
    assert "200 prompts answered in 2 ways: 2000 tokens, 0 differing; 6 differing bits" in text


def test_a_readme_without_markers_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "README.md").write_text("nothing\n")
    assert readme_table.main([]) == 1
    assert "figures: begin" in capsys.readouterr().err
