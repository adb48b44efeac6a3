"""Every architecture of spandrel's registry has a row in docs/teachers.md; some are tried here.

All are tried by `python -m benchmarks.spandrel_teachers`, which makes that page.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.spandrel_nets import (  # noqa: E402
    RESTORERS,
    SUPER_RESOLUTION,
    make_net,
    rename_rrdb,
    write_checkpoint,
)
from benchmarks.spandrel_teachers import ALLOWED, FEATURES, IMAGE, ROWS, teach  # noqa: E402
from mipkd.archs._hooked import HookedNet  # noqa: E402
from mipkd.core.errors import UnsupportedError  # noqa: E402
from mipkd.distill.teacher import TeacherOptions, identify  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("spandrel"),
    pytest.mark.filterwarnings("ignore:torch.meshgrid", "ignore:Failed to initialize NumPy"),
]
ASIS = TeacherOptions()


def read(file: Path) -> Any:
    return identify(file, role="teacher", options=ASIS)


def test_every_architecture_of_the_registry_has_a_row(spandrel: Any) -> None:
    registered = {one.architecture.id for one in spandrel.MAIN_REGISTRY.architectures()}
    known = {name.partition(".")[0] for name in (*SUPER_RESOLUTION, *RESTORERS)}
    assert registered <= known, "run python -m benchmarks.spandrel_teachers with these"
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    assert {row["name"] for row in rows} == {*SUPER_RESOLUTION, *RESTORERS}
    page = (ROOT / "docs/teachers.md").read_text()
    for row in rows:
        family, _, kind = row["name"].partition(".")
        title = kind if kind == family else f"{family}: {kind}"
        assert re.search(rf"^\| {re.escape(title)} \|", page, re.MULTILINE), title


def test_no_row_is_of_a_net_that_was_taught_or_exported_wrongly() -> None:
    for row in map(json.loads, ROWS.read_text().splitlines()):
        lessons = [row[one] for one in ("image", "features") if one in row]
        for first, last in (pair for one in lessons for pair in one.values()):
            assert last < first, row["name"]
        assert (row.get("levels") or 0) <= ALLOWED, row["name"]
        assert row["name"] in SUPER_RESOLUTION or row["refused"], row["name"]


@pytest.mark.parametrize(
    ("name", "scale", "blocks", "one_by_one"),
    [
        ("IPT.IPT", 2, 0, True),  # is called for parts of an image, on pixels up to 255
        ("MMRealSR.MMRealSR", 4, 3, False),  # gives a tuple
        ("SeemoRe.SeemoRe", 3, 2, True),  # chooses experts over the batch
        ("SAFMN.SAFMN", 2, 2, False),
    ],
)
def test_a_kind_of_net_teaches(
    name: str, scale: int, blocks: int, one_by_one: bool, tmp_path: Path
) -> None:
    model, net = read(write_checkpoint(name, scale, tmp_path / "net.pth"))
    assert isinstance(net, HookedNet)
    assert (model.scale, len(net.blocks), net.one_by_one) == (scale, blocks, one_by_one)
    lr = torch.rand(2, 3, 37, 45, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = net(lr)
        assert torch.allclose(image[1:], net(lr[1:]), atol=1e-3)
    assert image.shape == (2, 3, 37 * scale, 45 * scale)
    terms = teach(model, net, FEATURES if blocks else IMAGE, tmp_path, steps=3)
    assert terms.keys() == ({"logits", "feature"} if blocks else {"logits"})
    assert terms["logits"][-1] < terms["logits"][0]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"params_ema": state, "params": {k: v * 0 for k, v in state.items()}},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {"params": {k: v.half() for k, v in state.items()}},
    ],
)
def test_any_wrapper_prefix_and_float16_are_read(wrap: Any, tmp_path: Path) -> None:
    net, lr = make_net("PLKSR.RealPLKSR", 2), torch.rand(1, 3, 20, 24)
    torch.save(wrap(net.state_dict()), tmp_path / "net.pth")
    _, ours = read(tmp_path / "net.pth")
    with torch.no_grad():
        assert torch.allclose(ours(lr), net(lr), atol=2e-3)


def test_either_naming_of_rrdb_gives_the_same_image(tmp_path: Path) -> None:
    net, lr = make_net("ESRGAN.ESRGAN", 4), torch.rand(1, 3, 16, 20)
    renamed = rename_rrdb(net.state_dict())
    assert {"conv_first.weight", "body.1.rdb3.conv5.bias", "conv_last.bias"} <= renamed.keys()
    torch.save({"params_ema": renamed}, tmp_path / "new.pth")
    model, ours = read(tmp_path / "new.pth")
    assert (model.arch, model.scale) == ("ESRGAN", 4)
    with torch.no_grad():
        assert torch.allclose(ours(lr), net(lr), atol=1e-6)


@pytest.mark.parametrize("name", ["DRUNet.DRUNet", "NAFNet.NAFNet", "SAFMNBCIE.SAFMNBCIE"])
def test_restorers_are_refused_by_name(name: str, tmp_path: Path) -> None:
    named = name.partition(".")[0].replace("BCIE", " BCIE")
    with pytest.raises(UnsupportedError, match=f"{named} for Restoration, x1"):
        read(write_checkpoint(name, 1, tmp_path / "net.pth"))


def test_a_net_that_draws_noise_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="AuraSR gives another image each time"):
        read(write_checkpoint("AuraSR.AuraSR", 4, tmp_path / "net.pth"))


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("RealCUGAN.UpCunet3x", {"in_channels": 1, "out_channels": 1}, "1 channels to 1"),
        ("SwiftSRGAN.SwiftSRGAN", {"in_channels": 4}, "4 channels to 4"),
    ],
)
def test_other_images_than_rgb_are_refused(
    name: str, sizes: dict[str, int], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUPER_RESOLUTION, name, {**SUPER_RESOLUTION[name], **sizes})
    with pytest.raises(UnsupportedError, match=message):
        read(write_checkpoint(name, 4, tmp_path / "net.pth"))


def test_a_net_of_ours_that_does_not_upscale_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="SwinIR for Restoration, x1"):
        read(write_checkpoint("SwinIR.SwinIR", 1, tmp_path / "net.pth"))
