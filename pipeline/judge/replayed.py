"""Gates on what a bundle's models made of the golden images here, and on the figures beside them.

A manifest's hashes can be made anew by whoever changes a file. So a model must still give its
golden outputs, compute in the precision it is said to, and be as large and as fast as recorded;
and the recorded figures must be those of the golden outputs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mipkd.core.errors import StageError
from mipkd.core.evidence import Gate, Outcome
from mipkd.core.images import read_rgb, resize_bicubic
from mipkd.core.measurement import REFERENCE, ImageScore, Measurement
from mipkd.core.precision import FLOATS, QUANTIZED, executed_precision
from mipkd.metrics.base import Metric, list_metrics, list_plain
from pipeline.bench.board import describe_changes, read_settings
from pipeline.bench.comparisons import subject, valid_latency
from pipeline.bench.differences import Difference, compare_images
from pipeline.bench.host import describe_host
from pipeline.bench.pixels import measure_image, output_file
from pipeline.bundle.golden import GOLDEN, HR, LR, golden_folder, names_in
from pipeline.bundle.replay import Replayed
from targets.base import ByteArray, find

# Kernels of another CPU round otherwise, to either side: the mean of a channel stays.
_MOST_SHIFT = 0.25  # levels
_TILE_BELOW_DB = 6.0  # twice the error that the whole may have
# On noise and pure colours RLFN x4 in BF16 is 10 dB further from another CPU's than on photos.
_PROBES_BELOW_DB = 12.0
# RLFN x4 with all of it in INT8 has 29 dB on its worst tile of Set14: below, a part is not drawn.
_LEAST_TILE_DB = 20.0
_SLOWER = 1.5  # times the recorded median: two days on one machine are apart by 1.15


def judge_replayed(bundle: Path, one: Replayed, recorded: Measurement | None) -> Iterator[Gate]:
    """The gates of one model; none where it does not run here."""
    name = f"{one.model.target} {one.model.precision}"
    if one.failed:
        yield _gate("replay", name, Outcome.FAIL, one.failed)
    if one.outputs is None:
        return
    yield _judge_pixels(name, one, bundle)
    yield from _judge_against_fp32(name, one, bundle)
    yield from _judge_kernels(name, one, recorded)
    yield from _judge_size(name, one, recorded)
    yield from _judge_speed(name, one, recorded)


def describe(one: Replayed, found: Difference, probes: Difference) -> str:
    """How far the outputs are from the golden ones, and where they were made."""
    what = "every value equal"
    if found.levels:
        what = f"up to {found.levels} levels apart, {found.share:.2%} of values, "
        what += f"{found.psnr_db:.1f} dB"
    bound, where = one.tolerance, "simulated here" if one.simulated else "ran here"
    if one.simulated != (one.model.kind in ("simulated", "emulated")):
        where += f", the bundle's was {one.model.kind}"
    most = f"{bound.levels} level{'s' * (bound.levels > 1)}, {bound.psnr_db:.0f} dB"
    images = f"{found.images} images"
    if probes.images:
        images += f", {probes.images} probes ({probes.psnr_db:.0f} dB)"
    return f"{what}; bound {most}; {images}, {where}"


def _judge_pixels(name: str, one: Replayed, bundle: Path) -> Gate:
    """Whether a model still gives its golden outputs."""
    golden = golden_folder(bundle, one.model.target, one.model.precision)
    pairs = list(_pairs(one.outputs, golden))
    photos = names_in(bundle / GOLDEN / HR) or [image for image, _, _ in pairs]
    try:
        found = compare_images(pair for pair in pairs if pair[0] in photos)
        probes = compare_images(pair for pair in pairs if pair[0] not in photos)
    except StageError as error:
        return _gate("replay", name, Outcome.FAIL, error.what)
    bound, faults = one.tolerance, []
    if found.levels > bound.levels or found.psnr_db < bound.psnr_db:
        faults.append(describe(one, found, probes))
    if found.shift > _MOST_SHIFT:
        faults.append(f"a tint: {found.shifted} levels in the mean, bound {_MOST_SHIFT:g}")
    for of, more_db in ((found, 0.0), (probes, _PROBES_BELOW_DB)):
        least = bound.psnr_db - _TILE_BELOW_DB - more_db
        if of.tile_db < least:
            faults.append(f"a tile: {of.tile}: {of.tile_db:.1f} dB, bound {least:g} dB")
    outcome = Outcome.FAIL if faults else Outcome.PASS
    reason = "; ".join(faults) or describe(one, found, probes)
    return Gate("replay", name, outcome, float(found.levels), bound.levels, "levels", reason)


def _judge_against_fp32(name: str, one: Replayed, bundle: Path) -> Iterator[Gate]:
    """Whether some part of a test image is not drawn, whatever the golden outputs show.

    Probes do not count here: on pure colours INT8 may be far off and yet as recorded.
    """
    truths = names_in(bundle / GOLDEN / HR)
    golden = golden_folder(bundle, REFERENCE, "fp32")
    found = compare_images(pair for pair in _pairs(one.outputs, golden) if pair[0] in truths)
    if found.images:
        well = found.tile_db >= _LEAST_TILE_DB
        reason = f"against the FP32 student, {found.images} images"
        reason = ", ".join(filter(None, (found.tile, reason)))
        outcome = Outcome.PASS if well else Outcome.FAIL
        yield Gate("worst tile", name, outcome, found.tile_db, _LEAST_TILE_DB, "dB", reason)


def _judge_kernels(name: str, one: Replayed, recorded: Measurement | None) -> Iterator[Gate]:
    """Whether the model computes in the precision that it is said to."""
    here, said = executed_precision(one.kernels), one.model.executes or one.model.precision
    if not here:
        return
    told = ", ".join(f"{count} in {kind}" for kind, count in sorted(one.kernels.items()))
    alike = _is_same_machine(recorded)
    if said in FLOATS and here in QUANTIZED:
        outcome, why = Outcome.FAIL, f"said to run in {said}; here {told}"
    elif said in QUANTIZED and here in FLOATS:
        outcome = Outcome.FAIL if alike else Outcome.INVALID
        why = f"said to run in {said}; here {told}"
        why += "" if alike else ": this machine has no kernels for it, or the model none to run"
    elif alike and recorded and recorded.kernels and recorded.kernels != one.kernels:
        before = ", ".join(f"{n} in {kind}" for kind, n in sorted(recorded.kernels.items()))
        outcome, why = Outcome.FAIL, f"recorded on such a machine: {before}; here {told}"
    else:
        outcome, why = Outcome.PASS, told
    yield _gate("runs in", name, outcome, why)


def _judge_size(name: str, one: Replayed, recorded: Measurement | None) -> Iterator[Gate]:
    stated = {one.model.size_bytes, recorded.size_bytes if recorded else one.model.size_bytes}
    if stated != {one.size_bytes}:
        said = " and ".join(f"{size:,}" for size in sorted(stated))
        why = f"{said} bytes as recorded, {one.size_bytes:,} here"
        yield _gate("size as recorded", name, Outcome.FAIL, why)


def _judge_speed(name: str, one: Replayed, recorded: Measurement | None) -> Iterator[Gate]:
    """Whether it is as fast as recorded, on the machine that recorded it; on a busy one that is
    not told."""
    here = one.latency
    there = valid_latency(recorded, here.size) if recorded and here else None
    if not (here and there and here.samples_s and _is_same_machine(recorded)):
        return
    recorded_s = statistics.median(there.samples_s)
    ratio = statistics.median(here.samples_s) / recorded_s
    least = min(here.samples_s) / recorded_s
    if ratio > _SLOWER >= least:  # something else may have taken the cores
        return
    what = f"latency at {here.size[1]}x{here.size[0]} as recorded"
    outcome = Outcome.FAIL if least > _SLOWER else Outcome.PASS
    why = f"{recorded_s * 1e3:.3f} ms there, on such a machine"
    yield Gate(what, name, outcome, ratio, _SLOWER, "x", why)


def _is_same_machine(recorded: Measurement | None) -> bool:
    """Whether it was measured on such a machine, set as this one, with the versions here."""
    if recorded is None or recorded.host is None:
        return False
    same = recorded.versions == find(recorded.target).versions()
    same = same and not describe_changes(recorded.conditions, read_settings())
    return same and recorded.host.id == describe_host().id


def judge_figures(
    bundle: Path, measurements: Sequence[Measurement], tests: Sequence[str], scale: int
) -> Iterator[Gate]:
    """Whether recorded figures are those of the golden images: bicubic's and each student's.

    `tests` are the names of all images that were to be scored.
    """
    truths = dict(_images(bundle / GOLDEN / HR))
    if not truths:
        why = "the bundle holds no truth of its golden images: an older version wrote it"
        yield _gate("figures", "student", Outcome.INVALID, why)
        return
    metrics = list_plain()
    for m in measurements:
        made = _golden_outputs(m, bundle, truths)
        if not (m.scores and made):
            continue
        name = subject(m) if m.target != REFERENCE else f"{m.role} {m.precision}"
        wrong = _missing(m, tests)
        for image, sr_HWC, hr_HWC in made:
            found = measure_image(image, sr_HWC, hr_HWC, scale=scale, metrics=metrics)
            wrong += _lies(found, m.scores, metrics)
        outcome = Outcome.FAIL if wrong else Outcome.PASS
        why = wrong[0] if wrong else f"{len(made)} of {len(m.scores)} images computed again"
        why += "" if wrong else _describe_trusted(m.scores)
        yield _gate("figures", name, outcome, why)


def _golden_outputs(
    m: Measurement, bundle: Path, truths: Mapping[str, ByteArray]
) -> list[tuple[str, ByteArray, ByteArray]]:
    """Name, output and truth of each golden image that has a truth."""
    if m.role == "bicubic":
        lr = {name: read_rgb(output_file(bundle / GOLDEN / LR, name)) for name in truths}
        return [(n, resize_bicubic(lr[n], hr.shape[:2]), hr) for n, hr in truths.items()]
    if m.role != "student":
        return []
    folder = golden_folder(bundle, m.target, m.precision)
    return [(n, sr, truths[n]) for n, sr in _images(folder) if n in truths]


def _missing(m: Measurement, tests: Sequence[str]) -> list[str]:
    scored = [score.image for score in m.scores]
    if not tests or sorted(scored) == sorted(tests):
        return []
    return [f"scores of {len(scored)} images, the test set has {len(tests)}"]


def _describe_trusted(scores: Sequence[ImageScore]) -> str:
    """The metrics whose figures are only repeated, since their nets' weights are not here."""
    recorded = {name for score in scores for name in score.metrics}
    some = [one.title for name, one in list_metrics().items() if one.backbone and name in recorded]
    return f"; not {', '.join(some)}, which needs weights" if some else ""


def _lies(found: ImageScore, scores: Sequence[ImageScore], metrics: Sequence[Metric]) -> list[str]:
    """Figures of one image that are not those recorded, to the last digit that is shown."""
    recorded = next((score for score in scores if score.image == found.image), None)
    if recorded is None:
        return [f"{found.image}: not scored"]
    wrong = []
    for metric in metrics:
        here, said = found.metrics.get(metric.name), recorded.metrics.get(metric.name)
        if said is None or (here is not None and abs(here - said) <= 10.0**-metric.digits):
            continue
        digits = metric.digits
        now = f"{here:.{digits}f} from its pixels" if here is not None else "for which it is small"
        wrong.append(f"{metric.title} of {found.image}: {said:.{digits}f} as recorded, {now}")
    shifts = zip(found.shift_rgb or (), recorded.shift_rgb or (), strict=False)
    if any(not abs(here - said) <= 0.01 for here, said in shifts):
        wrong.append(f"channels of {found.image}: not as recorded")
    return wrong


def _pairs(made: Path | None, golden: Path) -> Iterator[tuple[str, ByteArray, ByteArray]]:
    """Outputs that were made here beside the golden ones."""
    assert made is not None, "of a model that ran"
    for name, wanted in _images(golden):
        if output_file(made, name).is_file():
            yield name, read_rgb(output_file(made, name)), wanted


def _images(folder: Path) -> Iterator[tuple[str, ByteArray]]:
    for name in names_in(folder):
        yield name, read_rgb(output_file(folder, name))


def _gate(name: str, of: str, outcome: Outcome, reason: str) -> Gate:
    return Gate(name, of, outcome, None, 0.0, "", reason)
