"""Seconds and peak memory of each step of a finished run, from its receipts.

`python -m benchmarks.stages runs/real [--json]`
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Print one row a step, in the order they ended, and their sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    asked = parser.parse_args()
    rows = steps(asked.run)
    if not rows:
        sys.exit(f"error: {asked.run}: no finished step in this folder")
    if asked.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"| {'Step':<32} | {'Seconds':>8} | {'Peak MiB':>8} |\n|---|---:|---:|")
    for row in rows:
        print(f"| {row['step']:<32} | {row['seconds']:8.1f} | {_mebibytes(row):>8} |")
    peak = max((row["peak_rss_bytes"] or 0 for row in rows), default=0)
    total = {"step": "all", "seconds": sum(row["seconds"] for row in rows), "peak_rss_bytes": peak}
    print(f"| {total['step']:<32} | {total['seconds']:8.1f} | {_mebibytes(total):>8} |")


def steps(run: Path) -> list[dict[str, Any]]:
    """What the newest receipt of each stage and label says."""
    newest: dict[str, dict[str, Any]] = {}
    for file in run.glob("*/*/receipt.json"):
        receipt = json.loads(file.read_text())
        step = f"{file.parts[-3]} {receipt['label']}".strip()
        if step not in newest or newest[step]["ended"] < receipt["ended"]:
            newest[step] = receipt
    return [
        {
            "step": step,
            "seconds": receipt["seconds"],
            "peak_rss_bytes": receipt["peak_rss_bytes"],
        }
        for step, receipt in sorted(newest.items(), key=lambda item: str(item[1]["ended"]))
    ]


def _mebibytes(row: dict[str, Any]) -> str:
    return f"{row['peak_rss_bytes'] / 2**20:.0f}" if row["peak_rss_bytes"] else "–"


if __name__ == "__main__":
    main()
