# SPDX-License-Identifier: Apache-2.0
"""Writes the README's figures from the newest run in docs/results/*.csv; `--check` fails if they are not those."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
Record = dict[str, str]


def newest(path: Path) -> list[Record]:
    """The rows of the last run in a CSV, those of its commit on its day; none if there is no file.

    Every row has the moment in which it was measured. Of a figure measured twice the later one counts.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    run = lambda record: (record["date"][:10], record["commit"])
    last = max(records, key=lambda record: record["date"], default=None)
    return list({(r["case"], r["metric"]): r for r in records if last and run(r) == run(last)}.values())


def speed_table(records: list[Record]) -> str:
    """Plain and speculative decoding by class of prompts."""
    figures = {(record["case"], record["metric"]): record for record in records}
    cases = [case for case, metric in figures if metric == "spec_tokens_per_s"]
    lines = [
        "| prompts | plain, tokens/s | token tree, tokens/s | ratio | tokens a step |",
        "|---|---|---|---|---|",
    ]
    for case in cases:
        plain, tree = figures[case, "plain_tokens_per_s"], figures[case, "spec_tokens_per_s"]
        accepted = figures[case, "mean_accepted_length"]
        lines.append(
            f"| {case} | {float(plain['value']):.0f} | {float(tree['value']):.0f} | {float(tree['ratio']):.2f} "
            f"| {float(accepted['value']):.2f} |"
        )
    one = records[0]
    lines += [
        "",
        f"SmolLM2-135M-Instruct, {one['machine']}, {one['threads']} threads, backend {one['backend']}, "
        f"commit {one['commit']}, {one['date'][:10]}, load {one['load']}.",
    ]
    return "\n".join(lines) + "\n"


def equality_lines(records: list[Record]) -> str:
    """What the equality bench compared and found."""
    total = lambda metric: sum(int(float(r["value"])) for r in records if r["metric"] == metric)
    cases = {record["case"] for record in records}
    prompts = max(int(float(r["value"])) for r in records if r["metric"] == "prompts")
    return (
        f"Equality with plain decoding, {prompts} prompts answered in {len(cases)} ways: {total('tokens')} tokens, "
        f"{total('differing_tokens')} differing; {total('differing_logprob_bits')} differing bits of their logprobs "
        f"(commit {records[0]['commit']}, {records[0]['date'][:10]}).\n"
    )


def section() -> str:
    """The generated part of the README."""
    speed, equality = newest(RESULTS / "e2e.csv"), newest(RESULTS / "equality.csv")
    parts = [speed_table(speed)] if speed else []
    parts += [equality_lines(equality)] if equality else []
    return "\n".join(parts) or "Not measured yet: `make bench`.\n"


def main(arguments: list[str]) -> int:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        print(f"error: README.md must have one {BEGIN.strip()} and one {END.strip()}", file=sys.stderr)
        return 1
    head, rest = text.split(BEGIN)
    new = head + BEGIN + section() + END + rest.split(END)[1]
    if arguments == ["--check"]:
        if new != text:
            print(
                "error: README.md's figures are not those of docs/results: python tools/readme_table.py",
                file=sys.stderr,
            )
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
