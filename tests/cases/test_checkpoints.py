"""Checkpoints as people's files hold them: found, or refused by what they are."""

from __future__ import annotations

import argparse
import gzip
import logging
import os
import pickle
import re
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from checkpoint_makers import ASIS, TRAINED, State, tiny, under
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor, nn

from mipkd.archs import edsr
from mipkd.core.errors import MipkdError, UnsupportedError, UsageError
from mipkd.distill.teacher import identify
from mipkd.export.adopt_onnx import adopt


def other(count: int = 3) -> State:
    return {f"conv{i}.weight": torch.ones(9, 9, 3, 3) for i in range(count)}


def look(path: Path, content: Any) -> tuple[Any, State]:
    """What a saved checkpoint is found to be, and the net's weights."""
    torch.save(content, path)
    model, net = identify(path, role="teacher", options=ASIS)
    return model, edsr.ARCH.original(net)


def is_same(found: State, wanted: State) -> bool:
    return all(torch.equal(found[key], wanted[key]) for key in wanted if "mean" not in key)


WRAPPED: dict[str, Callable[[State, State], Any]] = {
    "compiled": lambda s, _: under("_orig_mod.", s),
    "compiled in DataParallel": lambda s, _: under("module._orig_mod.", s),
    "DataParallel in compiled": lambda s, _: under("_orig_mod.module.", s),
    "compiled body": lambda s, _: {re.sub("^body", "body._orig_mod", k): v for k, v in s.items()},
    "lightning": lambda s, _: {"state_dict": under("model.", s), "epoch": 1},
    "generator": lambda s, _: {
        "state_dict": under("generator.", s) | {"step_counter": torch.ones(1)}
    },
    "average beside": lambda s, o: {
        "state_dict": under("generator.", o) | under("generator_ema.", s) | under("netD.", other())
    },
    "netG": lambda s, _: under("netG.", s),
    "net_g in module": lambda s, _: {"state_dict": under("module.net_g.", s)},
    "network": lambda s, _: {"model": {"weights": under("network.", s)}},
    "unknown prefix": lambda s, _: {"a": {"b": under("my_upscaler.x4.", s)}},
    "ema_model": lambda s, o: (
        under("online_model.", o)
        | under("ema_model.module.", s)
        | {"initted": torch.ones(1), "step": torch.ones(1)}
    ),
    "averaged model": lambda s, _: under("module.", s) | {"n_averaged": torch.tensor(3)},
    "net": lambda s, _: {"net": s},
    "model_state_dict": lambda s, _: {"model_state_dict": s, "optimizer_state_dict": {"state": {}}},
    "state_dict_ema": lambda s, o: {"state_dict": o, "state_dict_ema": s},
    "empty average": lambda s, _: {"params_ema": {}, "params": s},
    "average of params": lambda s, o: {"params": o, "params_ema": s},
    "swa": lambda s, o: {"model": o, "swa_model": under("module.", s)},
    "discriminator": lambda s, _: {"net_d": under("module.", other(9)), "net_g": s},
    "discriminator in one": lambda s, _: s | under("discriminator.", other()),
    "perceptual loss": lambda s, _: under("sr.", s) | under("perceptual_loss.vgg.", other(9)),
    "optimiser": lambda s, _: {
        "optimizer": {"state": {i: {"exp_avg": v} for i, v in enumerate(s.values())}},
        "model": s,
    },
    "numbers of numpy": lambda s, _: {"state_dict": s, "best": np.float64(32.1)},
    "options": lambda s, _: {
        "args": argparse.Namespace(lr=1e-4),
        "net": s,
        "log": defaultdict(list),
    },
    "list": lambda s, _: [s, {"epoch": 3}],
    "keys that are no text": lambda s, _: {
        0: torch.ones(3),
        (1, 2): 4,
        "model": {**s, 7: torch.ones(1)},
    },
    "parameters": lambda s, _: {k: nn.Parameter(v) for k, v in s.items()},
    "arrays": lambda s, _: {k: v.numpy() for k, v in s.items()},
    "double": lambda s, _: {k: v.double() for k, v in s.items()},
    "sparse": lambda s, _: {k: v.to_sparse() if "body.0" in k else v for k, v in s.items()},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_the_net_is_found_in_any_wrapper_and_under_any_prefix(name: str, tmp_path: Path) -> None:
    wanted = tiny()
    model, found = look(tmp_path / "a.pth", WRAPPED[name](wanted, tiny(seed=1)))
    assert (model.arch, model.scale) == ("edsr", 2)
    assert is_same(found, wanted)


def test_what_was_taken_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {"state_dict": under("generator.", tiny()) | {"step_counter": torch.ones(1)}}
    with caplog.at_level(logging.INFO):
        model, _ = look(tmp_path / "a.pth", content)
    told = "state_dict, prefix 'generator.', 1 others left out: step_counter"
    assert model.settled["weights"] == told
    assert f"a.pth: weights taken from {told}" in caplog.text
    assert "weights" not in look(tmp_path / "b.pth", tiny())[0].settled


def test_what_may_belong_to_the_net_and_is_left_out_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    look(tmp_path / "a.pth", under("sr.", tiny()) | under("refine.", other()))
    assert "3 that may belong to it; the first: refine.conv0.weight" in caplog.text


def test_a_nets_twin_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    both = under("generator.", tiny(seed=1)) | under("generator_ema.", tiny())
    _, found = look(tmp_path / "a.pth", both)
    assert is_same(found, tiny())
    assert not caplog.records


def test_a_part_of_a_net_that_spandrel_knows_is_not_taken_for_the_net(
    spandrel: Any, tmp_path: Path
) -> None:
    """A small net of ours under a prefix, in a net whose other keys spandrel knows."""
    from spandrel.architectures.PLKSR import PLKSR

    net = PLKSR(dim=8, n_blocks=4, upscaling_factor=2)
    torch.save(
        {"params": net.state_dict(), "other": under("sr.", tiny()) | other()}, tmp_path / "a.pth"
    )
    assert identify(tmp_path / "a.pth", role="teacher", options=ASIS)[0].arch == "PLKSR"


def test_bfloat16_and_half_are_read_as_the_numbers_that_they_hold(tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        rounded = {k: v.to(dtype) for k, v in tiny().items()}
        _, found = look(tmp_path / "a.pth", rounded)
        assert is_same(found, {k: v.float() for k, v in rounded.items()})


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo this must not run",)


def zipped(path: Path, **inside: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in inside.items():
            archive.writestr(name, content)


def onnx_graph(path: Path, weight: Any) -> Path:
    """x2 of one convolution."""
    kernel = np.full((12, 3, 1, 1), 0.3, np.float32) if weight is None else weight
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, f"{name}h", f"{name}w"])
        for name in ("lr", "sr")
    ]
    nodes = [
        helper.make_node("Conv", ["lr", "kernel"], ["c"]),
        helper.make_node("DepthToSpace", ["c"], ["sr"], blocksize=2),
    ]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(kernel, "kernel")]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(TRAINED, "weights.safetensors")


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "lfs": (
        lambda p: p.write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 6000000\n"
        ),
        "a Git LFS pointer for 6000000 bytes",
    ),
    "page": (lambda p: p.write_text("<!DOCTYPE html><html><body>Sign in"), "a web page"),
    "page in other words": (lambda p: p.write_text("\n\n <HTML lang=en>"), "a web page"),
    "json": (lambda p: p.write_text('{"error": "not found"}'), "a JSON text"),
    "text": (
        lambda p: p.write_text("Entry not found"),
        "a text that begins with 'Entry not found'",
    ),
    "empty": (lambda p: p.write_bytes(b""), "an empty file"),
    "zeros": (lambda p: p.write_bytes(bytes(5000)), "bytes of zeros"),
    "script": (lambda p: torch.jit.script(nn.Conv2d(1, 1, 1)).save(p), "TorchScript"),
    "onnx": (lambda p: onnx_graph(p, None), "an ONNX graph"),
    "gzip": (lambda p: p.write_bytes(gzip.compress(b"x" * 99)), "a gzip archive"),
    "tar": (write_tar, "a tar archive"),
    "keras": (lambda p: zipped(p, **{"config.json": b"{}", "model.weights.h5": b""}), "Keras"),
    "hdf": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(40)), "an HDF5 file"),
    "gguf": (lambda p: p.write_bytes(b"GGUF\3\0\0\0" + bytes(40)), "a GGUF file"),
    "tflite": (lambda p: p.write_bytes(b"\x1c\0\0\0TFL3" + bytes(40)), "LiteRT"),
    "zip": (lambda p: zipped(p, **{"a/net.pth": b"x"}), "a zip archive of something else"),
    "numpy": (lambda p: p.write_bytes(b"\x93NUMPY\1\0" + bytes(40)), "a NumPy array"),
    "bytes": (lambda p: p.write_bytes(b"\xfe\xff\x00\x81" * 40), "of no format that is known"),
    "cut zip": (lambda p: cut(p, tiny(), 9000), "cut short, 9000 bytes"),
    "cut pickle": (lambda p: cut(p, tiny(), 300, old=True), "cut short or damaged, 300 bytes"),
    "cut safetensors": (
        lambda p: p.write_bytes(TRAINED.read_bytes()[:9000]),
        f"cut short: 9000 of {TRAINED.stat().st_size} bytes",
    ),
    "folder": (lambda p: p.mkdir(), "a folder, not a file"),
    "module": (
        lambda p: torch.save(nn.Conv2d(1, 1, 1), p),
        "a whole module, torch.nn.modules.conv",
    ),
    "code": (
        lambda p: torch.save({"params": Code()}, p),
        "holds code, not only tensors: posix.sys",
    ),
    "code that torch's reader does not reach": (
        lambda p: torch.save({"params": Code()}, p, pickle_protocol=4),
        "holds code, not only tensors: posix.sys",
    ),
    "bare code": (
        lambda p: p.write_bytes(pickle.dumps({"params": Code()}, protocol=4)),
        "holds code, not only tensors: posix.sys",
    ),
}


def cut(path: Path, state: State, size: int, *, old: bool = False) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=not old)
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", FILES)
def test_what_a_file_really_is_is_said(
    name: str, ending: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write, what = FILES[name]
    file = tmp_path / f"net{ending}"
    write(file)
    with pytest.raises(UsageError, match=re.escape(what)) as caught:
        identify(file, role="teacher", options=ASIS)
    assert str(file) in caught.value.what
    assert caught.value.hint
    assert "must not run" not in capfd.readouterr().out


def test_a_file_is_read_by_what_it_is_and_not_by_its_name(tmp_path: Path) -> None:
    wanted = tiny()
    save_file(wanted, tmp_path / "a.pth")
    torch.save(wanted, tmp_path / "b.safetensors")
    for file in tmp_path.iterdir():
        _, net = identify(file, role="teacher", options=ASIS)
        assert is_same(edsr.ARCH.original(net), wanted)


@pytest.mark.parametrize("key", ["license", "Licence", "LICENSE", "modelspec.license"])
def test_the_licence_in_anybodys_header_is_read(key: str, tmp_path: Path) -> None:
    save_file(tiny(), tmp_path / "a.safetensors", metadata={key: "CC-BY-4.0", "format": "pt"})
    model, _ = identify(tmp_path / "a.safetensors", role="teacher", options=ASIS)
    assert model.licence == "CC-BY-4.0"


def nested(depth: int) -> Any:
    """A pickle of mappings inside each other, written by hand: pickle itself would recurse."""
    return b"\x80\x02" + b"}X\1\0\0\0a" * depth + b"}" + b"s" * depth + b"."


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (lambda p: torch.save((loop := {}, loop.update(params=loop))[0], p), "no tensors in it"),
        (lambda p: torch.save([loop := [], loop.append(loop)], p), "no tensors in it"),
        (lambda p: torch.save({"a": {0: torch.ones(3)}}, p), "no tensors in it"),
        (lambda p: torch.save(torch.ones(3, 3), p), "no tensors in it under names: a Tensor"),
        (lambda p: torch.save("weights", p), "no tensors in it under names: a str"),
        (lambda p: p.write_bytes(nested(100_000)), "no|not"),
    ],
    ids=["itself", "list", "indices", "tensor", "text", "deep"],
)
def test_what_holds_no_net_ends_in_an_error(
    write: Callable[[Path], None], what: str, tmp_path: Path
) -> None:
    write(tmp_path / "a.pth")
    with pytest.raises(UsageError, match=what):
        identify(tmp_path / "a.pth", role="teacher", options=ASIS)


def changed(key: str, change: Callable[[Tensor], Tensor]) -> State:
    state = tiny()
    return state | {key: change(state[key])}


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (
            changed("body.1.body.0.weight", lambda v: v * torch.nan),
            "body.1.body.0.weight has 576 NaN",
        ),
        (changed("tail.1.bias", lambda v: v / 0), r"tail\.1\.bias has .*infinite of 3 values"),
        (changed("sub_mean.weight", lambda v: v * torch.nan), r"sub_mean\.weight has 9 NaN"),
        (changed("head.0.bias", lambda v: v.double() * 1e300), r"head\.0\.bias has 8 infinite"),
        ({k: v * 0 for k, v in tiny().items()}, "kernels in it are zero"),
        (changed("sub_mean.weight", lambda v: v * 0), "fewer than three dimensions"),
        (changed("head.0.weight", lambda v: v + 1j), r"head\.0\.weight has complex values"),
        (changed("head.0.weight", lambda v: v.to("meta")), r"head\.0\.weight has no values"),
        (changed("head.0.weight", lambda v: v.to(torch.int8)), r"lift\.weight has int8 values"),
        (changed("head.0.weight", lambda v: v[0, 0, 0, 0]), "edsr: "),
        (changed("tail.1.weight", lambda v: v[..., 0]), "edsr: "),
        (changed("tail.0.0.weight", lambda v: v[:0]), "edsr: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_that_no_net_computes_with_are_refused_by_name(
    state: State, what: str, tmp_path: Path
) -> None:
    torch.save(under("module.", state), tmp_path / "a.pth")
    with pytest.raises(MipkdError, match=what) as caught:
        identify(tmp_path / "a.pth", role="teacher", options=ASIS)
    assert caught.value.exit_code in (2, 3)
    assert caught.value.what


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_tensors_are_read_as_the_numbers_that_they_stand_for(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(tiny()["head.0.weight"], 0.01, 0, torch.qint8)
    _, found = look(tmp_path / "a.pth", tiny() | {"head.0.weight": quantised})
    assert torch.equal(found["head.0.weight"], quantised.dequantize())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_graphs_weights_that_are_no_numbers_are_refused_by_name(
    value: float, tmp_path: Path
) -> None:
    kernel = np.full((12, 3, 1, 1), 0.3, np.float32)
    kernel[3] = value
    file = onnx_graph(tmp_path / "a.onnx", kernel)
    with pytest.raises(UsageError, match=r"a\.onnx: kernel has 3 (NaN|infinite) of 36 values"):
        adopt(file, scale=None, image_range=None, probe=lambda scale: [], out=tmp_path)


@pytest.mark.parametrize(
    "hyper",
    [
        "{", "[1]", "3", "null", "{" * 9999, '{"image_range": "255"}', '{"image_range": null}',
        '{"image_range": 0}', '{"res_scale": NaN}', '{"mean": [1, 2]}', '{"mean": 3}',
        '{"channels": 1000000000}', '{"blocks": 1e9}', '{"scale": "2"}', '{"direct": {}}',
        '{"image_range": [255]}',
    ],
)  # fmt: skip
def test_a_header_that_was_changed_is_refused(hyper: str, tmp_path: Path) -> None:
    header = {"arch": "edsr", "hyper": hyper}
    save_file(tiny(), tmp_path / "a.safetensors", metadata=header)
    with pytest.raises(UsageError, match="header"):
        identify(tmp_path / "a.safetensors", role="teacher", options=ASIS)


def test_spandrel_is_asked_where_a_family_of_ours_fits_in_part(
    spandrel: Any, tmp_path: Path
) -> None:
    """EDSR's keys with a kernel that it has not, which spandrel does not know either."""
    torch.save(tiny() | {"body.0.body.3.weight": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(UnsupportedError, match="parts that this family does not") as caught:
        identify(tmp_path / "a.pth", role="teacher", options=ASIS)
    assert "spandrel" in caught.value.hint


def test_spandrel_is_given_the_net_in_any_wrapper(spandrel: Any, tmp_path: Path) -> None:
    from spandrel.architectures.PLKSR import PLKSR

    torch.manual_seed(0)
    net = PLKSR(dim=8, n_blocks=4, upscaling_factor=2)
    content = {"state_dict": under("generator_ema._orig_mod.", net.state_dict()), "epoch": 3}
    model, _ = look_foreign(tmp_path / "a.pth", content)
    assert (model.arch, model.scale) == ("PLKSR", 2)
    assert model.settled["weights"] == "state_dict, prefix 'generator_ema.', without '_orig_mod.'"


def look_foreign(path: Path, content: Any) -> tuple[Any, Any]:
    torch.save(content, path)
    return identify(path, role="teacher", options=ASIS)
