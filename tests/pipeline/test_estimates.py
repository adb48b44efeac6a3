"""What a plan foretells: from what was done before, else from a few speeds; what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from mipkd.distill.settings import DistillConfig
from pipeline.causes import Cause
from pipeline.config import Config
from pipeline.inputs import ImageSizes
from pipeline.plan.estimates import Estimate, estimate, note_timings
from pipeline.plan.formulas import Formulas, Speeds
from pipeline.plan.outline import outline
from pipeline.plan.timings import Timing, Timings
from pipeline.receipts import Receipt
from pipeline.run import Event, Run
from pipeline.stage import Ref, Source, stage
from pipeline.stages.distill import DistillInputs

SIZES = ImageSizes(photos=((100, 100),) * 8, tests=((64, 64),) * 2)


def training(steps: int, *, remembered: bool = False, record: object = None) -> Event:
    planned = Ref("key", None)
    config = DistillConfig(steps=steps)
    inputs = DistillInputs(config, planned, None, planned, planned)  # type: ignore[arg-type]
    return Event(
        "distill", "", f"d{steps}", remembered, "not yet run", inputs=inputs, record=record
    )


def test_a_training_takes_for_each_step_what_it_took_before(tmp_path: Path) -> None:
    timings = Timings(None)
    took = {"distill": Receipt({}, "", seconds=50.0, peak_rss_bytes=2**30)}
    note_timings(Config(), [training(100, record="made")], took, timings)

    def foretold(*events: Event) -> Estimate:
        return estimate(Config(), events, None, timings, tmp_path)

    longer = foretold(training(300))
    assert longer.training_s == pytest.approx(150)
    assert longer.total_s > 150  # the report
    assert longer.peak_bytes == 2**30
    assert foretold(training(300, remembered=True)).steps == {}


def test_what_was_noted_is_found_again_by_its_kind_alone(tmp_path: Path) -> None:
    file = tmp_path / "timings.jsonl"
    before = Timings(file)
    before.note("build", {"label": "cpu int8"}, Timing(3.0, 1.0, 2**30))
    before.note("build", {"label": "cpu int8"}, Timing(2.0, 1.0, 2**30))
    before.save()
    again = Timings(file)
    assert again.find("build", {"label": "cpu int8"}) == Timing(2.0, 1.0, 2**30)
    assert again.find("build", {"label": "cpu fp32"}) is None
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"kind": "a"}', "\x00" * 9, "[" * 9999])
def test_a_damaged_file_of_timings_is_as_none(text: str, tmp_path: Path) -> None:
    file = tmp_path / "timings.jsonl"
    file.write_text(text + "\n")
    timings = Timings(file)
    timings.note("step", {}, Timing(1.0))
    timings.save()
    assert Timings(file).find("step", {}) == Timing(1.0)


def test_a_place_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    timings = Timings(tmp_path / "file" / "timings.jsonl")
    timings.note("step", {}, Timing(1.0))
    timings.save()
    assert timings.find("step", {}) == Timing(1.0)


def test_twice_the_steps_take_twice_as_long_and_a_slow_machine_longer() -> None:
    def seconds(steps: int, step_s: float) -> float:
        event = training(steps)
        known = outline(Config(), [event], SIZES)
        steps = {event.key: Timing(step_s)}
        speeds = Speeds(1e-6, 1e-5, 1.0, 1.0, cores=2, steps=steps)
        return Formulas(known, [event], speeds).time(event).seconds

    assert seconds(2000, 0.1) == pytest.approx(2 * seconds(1000, 0.1), rel=0.02)
    assert seconds(1000, 0.1) == pytest.approx(100, rel=0.02)
    assert seconds(1000, 0.4) > 3.9 * seconds(1000, 0.1)


@dataclass(frozen=True)
class PhotoInputs:
    source: Source


@dataclass(frozen=True)
class NetInputs:
    config: dict[str, int]
    photos: Ref[str]


@dataclass(frozen=True)
class GraphInputs:
    net: Ref[str]


@stage(version=1)
def photos(inputs: PhotoInputs, *, out: Path) -> str:
    return inputs.source.sha256


@stage(version=1)
def distill(inputs: NetInputs, *, out: Path) -> str:
    return inputs.photos.value


@stage(version=1)
def export(inputs: GraphInputs, *, out: Path) -> str:
    return inputs.net.value


def events(root: Path, sha: str, steps: int, *, dry: bool = False) -> list[Event]:
    run = Run(root, dry=dry)
    stored = run.step(photos, PhotoInputs(Source(root / "photos", sha)))
    net = run.step(distill, NetInputs({"steps": steps}, stored))
    run.step(export, GraphInputs(net))
    return run.events


def test_each_step_names_what_the_user_changed(tmp_path: Path) -> None:
    events(tmp_path, "a", 1)
    of_photos = events(tmp_path, "b", 1, dry=True)
    cause = Cause("photos", "", "source")
    assert [one.causes for one in of_photos] == [(cause,)] * 3
    assert str(cause) == "the photos changed"
    of_setting = events(tmp_path, "a", 2, dry=True)
    assert [tuple(map(str, one.causes)) for one in of_setting] == [
        (),
        ("changed: distill config.steps 1 -> 2",),
        ("changed: distill config.steps 1 -> 2",),
    ]
    of_both = events(tmp_path, "b", 2, dry=True)
    assert len(of_both[2].causes) == 2
    assert [one.causes for one in events(tmp_path, "a", 1, dry=True)] == [()] * 3
