"""`results.json`: the evidence of a run, and the figures that are computed from it.

Paths in it are from the run's folder.
"""

from __future__ import annotations

import json
from pathlib import Path

from mipkd.core.codec import decode, encode, read_json
from mipkd.core.errors import UsageError
from mipkd.core.evidence import Evidence
from pipeline.report.figures import Figures
from pipeline.report.results_1x import as_evidence

SCHEMA_VERSION = "2.3"
RESULTS = "results.json"
_HINT = "give the results.json of a report"


def write_results(evidence: Evidence, figures: Figures, file: Path, run: Path) -> None:
    """Write the file of a run whose folder is `run`."""
    stated = {"schema_version": SCHEMA_VERSION, **encode(evidence, run)}
    stated |= {"figures": encode(figures)}
    file.write_text(json.dumps(stated, indent=1, allow_nan=False))


def read_results(file: Path) -> Evidence:
    """The evidence in a `results.json` of version 2 or 1.

    Raises:
        UsageError: it cannot be read, is no such file, or of another major version.
    """
    stated = read_json(file, what="results of a run", hint=_HINT)
    version = stated.get("schema_version") if isinstance(stated, dict) else None
    if not isinstance(version, str):
        raise UsageError(f"{file}: not the results of a run: no schema_version", hint=_HINT)
    major = version.partition(".")[0]
    if major not in ("1", "2"):
        raise UsageError(
            f"{file}: its schema_version is {version}, this program reads {SCHEMA_VERSION} and 1.x",
            hint="write the report anew: mipkd-pipeline report RUN",
        )
    try:
        found = as_evidence(stated) if major == "1" else stated
        return decode(Evidence, found, run_of(file.parent))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        why = f"no {error}" if isinstance(error, KeyError) else error
        raise UsageError(f"{file}: not the results of a run: {why}", hint=_HINT) from error


def report_folder(root: Path) -> Path:
    """Where a run's newest report lies."""
    return root / "report" / "latest"


def run_of(report: Path) -> Path:
    """The run's folder of a report's folder."""
    return report.absolute().parent.parent
