"""Gates for a pull request: a Markdown table, and lines that GitHub shows at the top."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mipkd.core.evidence import Gate, Outcome
from mipkd.core.names import printable
from pipeline.report.markup import cell

_MARK = {Outcome.PASS: "✅", Outcome.FAIL: "❌", Outcome.INVALID: "⚠️"}
_COLUMNS = ("", "Model", "What", "Figure", "Bound", "Why")


def table(title: str, outcome: Outcome, gates: Sequence[Gate]) -> str:
    """The verdict, what stopped it, and all gates folded away below."""
    stopped = [gate for gate in gates if gate.outcome is not Outcome.PASS]
    kept = len(gates) - len(stopped)
    lines = [f"### {_MARK[outcome]} {cell(title)}: {outcome.value}", ""]
    lines += [f"{kept} of {len(gates)} gates pass."]
    if stopped:
        lines += ["", *_rows(stopped)]
    lines += ["", "<details><summary>All gates</summary>", "", *_rows(gates), "", "</details>"]
    return "\n".join(lines) + "\n"


def github_lines(gates: Sequence[Gate]) -> Iterator[str]:
    """Workflow commands: FAIL is an error, INVALID a warning."""
    for gate in gates:
        if gate.outcome is not Outcome.PASS:
            kind = "error" if gate.outcome is Outcome.FAIL else "warning"
            text = f"{gate.subject}: {gate.name}{_figure(gate)}: {gate.reason}"
            yield f"::{kind} title=mipkd-pipeline check::{_escape(text)}"


def _rows(gates: Sequence[Gate]) -> Iterator[str]:
    yield "| " + " | ".join(_COLUMNS) + " |"
    yield "|" + "---|" * len(_COLUMNS)
    for gate in gates:
        bound = "" if gate.figure is None else f"{gate.bound:g} {gate.unit}"
        cells = (gate.subject, gate.name, _figure(gate), bound, gate.reason)
        shown = (cell(one.strip()) for one in cells)
        yield f"| {_MARK[gate.outcome]} | " + " | ".join(shown) + " |"


def _figure(gate: Gate) -> str:
    return "" if gate.figure is None else f" {gate.figure:.3f} {gate.unit}"


def _escape(text: str) -> str:
    """As GitHub reads workflow commands, on one line."""
    return printable(" ".join(text.split())).replace("%", "%25")
