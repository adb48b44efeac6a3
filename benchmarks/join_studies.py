"""One study of several that trained other arms of the same student: for arms that take days.

`python -m benchmarks.join_studies STUDY.json... --out FOLDER`

All must have the same teacher, student, photos, test sets and settings, and no training twice. The
folder gets `study.json` and `study.md`, with every arm's differences to those of `against` in the
first; time was measured where each was trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mipkd.core.codec import decode, encode
from mipkd.core.study import Study
from pipeline.report.study import lines_of, markdown


def main() -> None:
    """Write the joined study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("studies", nargs="+", type=Path, help="study.json files")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    try:
        read = [json.loads(file.read_text())["study"] for file in asked.studies]
        joined = join([decode(Study, one) for one in read])
    except (OSError, KeyError, ValueError) as wrong:
        raise SystemExit(f"error: {wrong}") from None
    asked.out.mkdir(parents=True, exist_ok=True)
    facts = {"study": encode(joined), "lines": encode(lines_of(joined))}
    (asked.out / "study.json").write_text(json.dumps(facts, indent=1, allow_nan=False))
    (asked.out / "study.md").write_text(markdown(joined))


def join(studies: Sequence[Study]) -> Study:
    """All trainings of all studies.

    Raises:
        ValueError: they are not of one student, or hold a training twice.
    """
    first = studies[0]
    for other in studies[1:]:
        theirs = _same(other)
        if unlike := [name for name, ours in _same(first).items() if ours != theirs[name]]:
            raise ValueError(f"{first.name} and {other.name} differ in {', '.join(unlike)}")
    trained = [one for study in studies for one in study.trained]
    keys = [(one.name, one.seed) for one in trained]
    if twice := {key for key in keys if keys.count(key) > 1}:
        arm, seed = min(twice)
        raise ValueError(f"{arm}, seed {seed}, is in two of them")
    return replace(
        first,
        command="; ".join(study.command for study in studies),
        commit=" ".join(dict.fromkeys(study.commit for study in studies)),
        trained=tuple(trained),
        missing=tuple(line for study in studies for line in study.missing),
        paces={name: pace for study in studies for name, pace in study.paces.items()},
    )


def _same(study: Study) -> dict[str, object]:
    """What all must have alike."""
    return {
        "teacher": study.teacher.sha256,
        "photos": study.photos.sha256,
        "size of the student": (study.student.arch, study.student.hyper),
        "settings": study.config["distill"],
        "test sets": [scores.source for scores in study.bicubic_scores],
        "the teacher's scores": [
            [round(image.psnr_y_db, 3) for image in scores.images]
            for scores in study.teacher_scores
        ],
    }


if __name__ == "__main__":
    main()
