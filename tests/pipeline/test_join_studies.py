"""Studies of other arms of one student are one study."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.join_studies import join
from mipkd.core.codec import decode
from mipkd.core.study import Study

RESULTS = Path(__file__).parents[2] / "docs/results/method-x2"


@pytest.fixture
def whole() -> Study:
    return decode(Study, json.loads((RESULTS / "c32b2-5000/study.json").read_text())["study"])


def part(study: Study, *arms: str) -> Study:
    return replace(study, trained=tuple(one for one in study.trained if one.arm in arms))


def test_parts_give_the_trainings_of_the_whole(whole: Study) -> None:
    others = dict.fromkeys(one.arm for one in whole.trained if one.arm not in ("scratch", "mipkd"))
    joined = join([part(whole, *others), part(whole, "mipkd", "scratch")])
    assert joined.trained != whole.trained
    assert sorted(map(repr, joined.trained)) == sorted(map(repr, whole.trained))
    assert replace(joined, trained=whole.trained, command=whole.command) == whole


def test_what_is_not_of_one_study_is_refused(whole: Study) -> None:
    with pytest.raises(ValueError, match="logits, seed 0, is in two"):
        join([part(whole, "logits"), part(whole, "logits", "scratch")])
    config = whole.config | {"distill": whole.config["distill"] | {"steps": 100}}
    with pytest.raises(ValueError, match="differ in settings"):
        join([part(whole, "logits"), replace(part(whole, "scratch"), config=config)])
