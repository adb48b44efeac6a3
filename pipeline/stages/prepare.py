"""Prepare photos to train on and images to test on, once."""

from pathlib import Path

from mipkd.core.records import Graph, Model, Photos, TestSet
from mipkd.distill import data
from pipeline.run import Source, stage


@stage(version=1)
def photos(patch: int, like: Model | Graph | int, source: Source | None, out: Path) -> Photos:
    """Training photos at the scale (of) `like`, decoded into flat uint8 files."""
    path = source.path if source else None
    return data.prepare_photos(path, scale=_scale(like), patch=patch, out=out)


@stage(version=1)
def tests(config: None, like: Model | Graph | int, source: Source | None, out: Path) -> TestSet:
    """Test images at the scale (of) `like`, HR and LR."""
    return data.prepare_tests(source.path if source else None, scale=_scale(like), out=out)


def _scale(like: Model | Graph | int) -> int:
    return like if isinstance(like, int) else like.scale
