"""Why a step is made anew, back to the file or setting that its user changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.stage import refs_of, sources_of

_NAMES = {
    "photos.source": "the photos",
    "tests.source": "the test images",
    "identify.photos": "the photos",
    "adopt.images": "the test images",
    "compare_teacher.images": "the test images",
    "identify.checkpoint": "the checkpoint of the {label}",
    "adopt.source": "the graph of the {label}",
    "adopt.weights": "the weights of the {label}",
}


@dataclass(frozen=True)
class Cause:
    """A file or a setting that changed, at the step that reads it."""

    stage: str
    label: str
    what: str  # the field of the step's inputs, of a setting with both values

    def __str__(self) -> str:
        named = _NAMES.get(f"{self.stage}.{self.what}", "")
        if named:
            return named.format(label=self.label or "student") + " changed"
        return f"changed: {self.stage} {self.what}"


def find_causes(
    stage: str,
    label: str,
    inputs: object,
    changed: Sequence[str],
    known: Mapping[str, tuple[Cause, ...]],
) -> tuple[Cause, ...]:
    """Of a step whose fields `changed`, or of those that it is made from: `known`, by key."""
    found = dict[Cause, None]()
    for one in changed:
        value = getattr(inputs, one.partition(".")[0], None)
        made = list(refs_of(value))
        if not made or list(sources_of(value)):
            found[Cause(stage, label, one)] = None
        for ref in made:
            found |= dict.fromkeys(known.get(ref.key, ()))
    return tuple(found)
