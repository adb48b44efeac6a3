"""Sample photos that come with the package: crops of CC0 photos (`mipkd/samples/README.md`)."""

from __future__ import annotations

from pathlib import Path

from mipkd.core.errors import MissingError

_FOLDER = Path(__file__).parents[1] / "samples"


def sample_photos() -> list[Path]:
    """Photos to train on.

    Raises:
        MissingError: the installation lacks them.
    """
    return _list_samples("train")


def sample_tests() -> list[Path]:
    """Photos to test on, none of them a part of one in `sample_photos`."""
    return _list_samples("test")


def _list_samples(kind: str) -> list[Path]:
    files = sorted((_FOLDER / kind).glob("*.webp"))
    if not files:
        raise MissingError(
            f"sample photos: none in {_FOLDER / kind}",
            hint="give photos of your own with --data and --val",
        )
    return files
