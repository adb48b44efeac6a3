"""Make the pages to look at: reports of one, two and five targets, PASS, FAIL and INVALID, a study,
a history. Photos and scores are real, times are made up.

    PYTHONPATH=.:tests/cases python benchmarks/look/pages.py OUT
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from report_case import MS, EvidenceOf, disturbed

from mipkd.core.evidence import Evidence
from mipkd.core.measurement import ImageScore
from mipkd.core.study import SetScores, Study, Trained
from pipeline.report import comparison, history
from pipeline.report.study import write_study
from pipeline.report.write import write

_FIVE = {"targets": ("cpu", "openvino", "tensorrt"), "simulated": ("coreml", "jetson")}


def main(out: Path) -> None:
    """Write all pages below `out`."""
    out.mkdir(parents=True)
    made = {
        "one-pass": EvidenceOf(out / "a", targets=("openvino",)).evidence,
        "two-fail": EvidenceOf(out / "b").evidence,
        "five-pass": EvidenceOf(out / "c", int8_on_cpu=0.3485, **_FIVE).evidence,
        "five-fail": EvidenceOf(out / "d", **_FIVE).evidence,
        "five-invalid": disturbed(EvidenceOf(out / "e", int8_on_cpu=0.3485, **_FIVE).evidence),
        "five-devices": EvidenceOf(out / "g", targets=(*MS,)).evidence,
        "five-none": EvidenceOf(
            out / "f", int8_on_cpu=0.1, int8=0.1, student=-0.3, **_FIVE
        ).evidence,
    }
    for name, evidence in made.items():
        write(replace(evidence, name=f"example-{name}"), out / name / "report" / "latest")
    write_history(made["two-fail"], out)
    compared = [comparison.Seen(name, made[name]) for name in ("two-fail", "five-fail")]
    comparison.write_page(compared, out / "comparison.html")
    write_study(study_of(made["two-fail"]), out / "study" / "report" / "latest")


def study_of(evidence: Evidence) -> Study:
    """Three arms of three seeds on two sets, around the run's figures."""
    rng, distilled = np.random.default_rng(0), evidence.distilled
    assert distilled is not None
    assert evidence.teacher is not None
    assert evidence.photos is not None

    def scored(psnr_y_db: float) -> tuple[SetScores, ...]:
        found = [psnr_y_db + float(rng.normal(0, 0.05)) for _ in range(6)]
        images = [ImageScore(f"i{n}", {"psnr_y": v, "ssim_y": 0.9}) for n, v in enumerate(found)]
        return tuple(SetScores(name, tuple(images)) for name in ("Set5", "Set14"))

    return Study(
        name="study",
        command="mipkd-pipeline study --teacher edsr.pth",
        created=evidence.created,
        commit=evidence.commit,
        host=evidence.host,
        teacher=evidence.teacher,
        student=evidence.student,
        photos=evidence.photos,
        config=evidence.config,
        teacher_scores=scored(32.0),
        bicubic_scores=scored(28.4),
        trained=tuple(
            Trained(arm, seed, 300, 95.0, 2 * 10**9, distilled.curves, scored(29.0 + better))
            for arm, better in (("scratch", 0.0), ("logits", 0.2), ("mipkd", 0.3))
            for seed in range(3)
        ),
        against=("scratch", "logits"),
        missing=("fitnet-0: out of memory",),
    )


def write_history(evidence: Evidence, out: Path) -> None:
    """Seven runs of one name, the later ones slower."""
    for day in range(1, 8):
        slower = 1.0 if day < 5 else 1.3
        slowed = tuple(
            replace(
                m,
                latencies=tuple(
                    replace(one, samples_s=tuple(s * slower for s in one.samples_s))
                    for one in m.latencies
                ),
            )
            for m in evidence.measurements
        )
        made = replace(evidence, created=f"2026-01-0{day}T00:00:00+00:00", measurements=slowed)
        history.append(made, out / history.FILE)
    history.write_page(history.read(out / history.FILE), out / "history.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
