"""How `--student auto` came to its net: every net that it timed, and why it went."""

from __future__ import annotations

from mipkd.core.records import StudentSearch, TriedStudent
from pipeline.report.tables import Row, Table
from pipeline.report.wording import NONE, as_size, number, thousands, three_digits


def student_table(search: StudentSearch | None) -> Table:
    """Latency, PSNR-Y after each rung and what was foretold before it; the chosen net first."""
    if search is None:
        return Table([], [], first=1)
    targets = list(dict.fromkeys(target for one in search.tried for target in one.p90_ms))
    head = ["Net", "GMACs", *(f"p90 ms, {target}" for target in targets)]
    for end in search.rungs:
        head.append(f"dB at step {thousands(end)} (foretold)")
    rows = [_row(one, targets, len(search.rungs)) for one in search.tried]
    return Table([*head, "Why it went"], rows, first=1, last=len(head))


def describe_search(search: StudentSearch) -> str:
    """What was asked, and on what it was chosen."""
    asked = f"p90 of {search.budget_ms:g} ms at LR {as_size(*search.size)}"
    if not search.rungs:
        return f"{search.spec} alone keeps a {asked}: nothing was trained to choose it."
    return (
        f"{search.spec} was chosen by successive halving among nets that keep a {asked}: "
        f"{thousands(search.steps)} training steps together, seed {search.seed}, PSNR-Y of "
        f"{search.crops} crops of photos that were not trained on. Foretold: before that rung, by "
        "the net's own curve."
    )


def _row(one: TriedStudent, targets: list[str], rungs: int) -> Row:
    cells = [one.spec, number(one.gmacs, 1)]
    for target in targets:
        ms = one.p90_ms.get(target)
        cells.append(NONE if ms is None else f"{three_digits(ms)} {one.precision[target]}")
    foretold = (None, *one.foretold_db)
    for psnr, before in zip(one.psnr_y_db, foretold, strict=False):
        cells.append(number(psnr, 2) + (f" ({number(before, 2)})" if before is not None else ""))
    cells += [NONE] * (rungs - len(one.psnr_y_db))
    return Row("shipped" if not one.dropped else "student", [*cells, one.dropped or "chosen"])
