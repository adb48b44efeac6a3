"""Sample photos that scikit-image and scikit-learn install anyway; read in place, not copied."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from mipkd.core.errors import MissingError

_HINT = "give photos of your own with --data and --val"
_SKIMAGE, _SKLEARN = ("skimage", "data"), ("sklearn", "datasets/images")
_TRAIN = {
    _SKIMAGE: (
        "astronaut.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "hubble_deep_field.jpg",
        "brick.png",
        "grass.png",
        "gravel.png",
    ),
    _SKLEARN: ("china.jpg", "flower.jpg"),
}
_TEST = {_SKIMAGE: ("chelsea.png", "coffee.png", "rocket.jpg")}


def sample_photos() -> list[Path]:
    """Photos to train on.

    Raises:
        MissingError: an installed package does not bring its images.
    """
    return _found(_TRAIN)


def sample_tests() -> list[Path]:
    """Photos to test on, none of them in `sample_photos`."""
    return _found(_TEST)


def _found(wanted: Mapping[tuple[str, str], tuple[str, ...]]) -> list[Path]:
    files = []
    for (package, folder), names in wanted.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise MissingError(f"sample photos: {package} is not installed", hint=_HINT)
        files += [Path(spec.origin).parent / folder / name for name in names]
    for file in files:
        if not file.is_file():
            raise MissingError(f"sample photos: {file} is not there", hint=_HINT)
    return files
