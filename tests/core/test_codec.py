"""Records come back from JSON as they were, and what is none says where."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest

from mipkd.core.codec import CodecError, decode, decode_file, encode, read_json
from mipkd.core.errors import UsageError
from mipkd.core.measurement import Host, ImageScore, Latency, Measurement


class Colour(Enum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    size: tuple[int, int]
    figure: float | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    many: tuple[Inner, ...]
    by_name: dict[str, tuple[float, ...]]
    kind: Literal["one", "two"]
    colour: Colour
    file: Path
    anything: Any
    either: float | Literal["off"] = "off"


INNER = {"size": [1, 2]}
OUTER = Outer(
    "name",
    (Inner((1, 2)), Inner((3, 4), 0.1)),
    {"a": (1.0,)},
    "two",
    Colour.RED,
    Path("/r/x/y"),
    [1],
)


def through_json(value: Any, root: Path | None = None) -> Any:
    return json.loads(json.dumps(encode(value, root), allow_nan=False))


def test_a_record_comes_back_as_it_was() -> None:
    assert decode(Outer, through_json(OUTER)) == OUTER
    assert decode(tuple[Outer, ...], through_json((OUTER, OUTER))) == (OUTER, OUTER)


def test_a_measurement_comes_back_to_the_last_bit() -> None:
    latency = Latency((2, 3), (0.1, 1 / 3, 1e-9), 2, 0.5, at_s=(0.0, 0.1, 0.2), memory_bytes=7)
    score = ImageScore("a", {"psnr_y": 31.123456789012345}, (0.1, -0.2, 0.3))
    host = Host("id", "cpu", 2, 2**33, "Linux", ("avx2",))
    m = Measurement("student", "cpu", "int8", 9, (latency,), (score,), host=host)
    assert decode(Measurement, through_json(m)) == m


def test_paths_below_the_root_move_with_it() -> None:
    stated = through_json(OUTER, Path("/r"))
    assert stated["file"] == "x/y"
    assert decode(Outer, stated, Path("/elsewhere")).file == Path("/elsewhere/x/y")
    assert through_json(OUTER, Path("/other"))["file"] == "/r/x/y"


def test_what_is_not_finite_is_null_and_reads_as_nan() -> None:
    stated = through_json({"a": (math.nan, math.inf, 1.0)})
    assert stated == {"a": [None, None, 1.0]}
    first, _, last = decode(tuple[float, ...], stated["a"])
    assert math.isnan(first)
    assert last == 1.0
    assert decode(Inner, {"size": [1, 2], "figure": None}).figure is None


def test_newer_fields_are_left_out_and_defaults_filled_in() -> None:
    assert decode(Inner, {"size": [1, 2], "newer": 5}) == Inner((1, 2))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": 5}, "name: no str: 5"),
        (
            {"many": [INNER, {"size": [1, "2"]}]},
            r"many\.1\.size\.1: no whole number: '2'",
        ),
        ({"many": [{"size": [1]}]}, r"many\.0\.size: 1 values, not 2"),
        ({"many": [{}]}, r"many\.0\.size: missing"),
        ({"many": {}}, "many: no list"),
        ({"by_name": {"b": ["x"]}}, r"by_name\.b\.0: no number: 'x'"),
        ({"kind": "three"}, "kind: no one of one, two: 'three'"),
        ({"colour": "blue"}, "colour: no one of red: 'blue'"),
        ({"file": None}, "file: no path: None"),
        ({"either": "on"}, "either: no one of off: 'on'"),
        ({"many": [True]}, r"many\.0: no Inner: True"),
    ],
)
def test_what_is_no_record_says_where(change: dict[str, Any], says: str) -> None:
    with pytest.raises(CodecError, match=says):
        decode(Outer, {**through_json(OUTER), **change})


def test_scores_from_before_the_registry_of_metrics_are_read() -> None:
    old = {"image": "a", "psnr_y_db": 30.0, "ssim_y": None, "drop_db": 0.1}
    found = decode(ImageScore, old)
    assert found.psnr_y_db == 30.0
    assert math.isnan(found.metrics["ssim_y"])


def test_a_damaged_file_is_told_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    with pytest.raises(UsageError, match=r"m\.json: no bundle: No such file"):
        read_json(file, what="bundle")
    file.write_text("{")
    with pytest.raises(UsageError, match=r"m\.json: damaged: "):
        read_json(file)
    with pytest.raises(UsageError, match=r"m\.json: damaged: size: missing"):
        decode_file(Inner, {}, file)


def test_what_is_no_record_is_not_written() -> None:
    with pytest.raises(TypeError, match="set"):
        encode({1, 2})


def test_it_needs_the_standard_library_alone() -> None:
    code = (
        "import sys, mipkd.core.codec, mipkd.core.measurement, mipkd.core.records\n"
        "assert not {'numpy', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
