"""Checkpoints that a stranger may hand over to stop or fill the machine; each of a few MB at most.

Each maker writes one into a folder and gives its path. What would run only touches a file.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from checkpoint_makers import tiny

Maker = Callable[[Path], Path]
HUGE = 10**5  # a side whose square is more than any memory


def _archive(path: Path, code: bytes, storages: dict[str, bytes] | None = None) -> Path:
    """What torch.save writes, with a pickle of our own; deflated, which torch never does."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data.pkl", code)
        packed.writestr("archive/version", "3\n")
        for name, content in (storages or {}).items():
            packed.writestr(f"archive/data/{name}", content)
    return path


def holds_itself(folder: Path) -> Path:
    content: dict[str, Any] = {"params": {}}
    content["params"]["params"] = content
    torch.save(content, folder / "holds_itself.pth")
    return folder / "holds_itself.pth"


def list_holds_itself(folder: Path) -> Path:
    content: list[Any] = []
    content += [content, {"state": content}]
    torch.save({"model": content}, folder / "list_holds_itself.pth")
    return folder / "list_holds_itself.pth"


def nested_dicts(folder: Path) -> Path:
    """A hundred thousand mappings inside each other."""
    name = b"X\x01\x00\x00\x00a"
    code = b"\x80\x02" + (b"}" + name) * 100_000 + b"}" + b"s" * 100_000 + b"."
    return _archive(folder / "nested_dicts.pth", code)


def nested_lists(folder: Path) -> Path:
    code = b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."
    return _archive(folder / "nested_lists.pth", code)


def many_laughs(folder: Path) -> Path:
    """Lists of ten times the same list, forty times: 10^40 things to see."""
    code = b"\x80\x02]q\x00"
    for number in range(40):
        code += b"](" + b"h" + bytes([number]) + (b"h" + bytes([number])) * 9 + b"e"
        code += b"q" + bytes([number + 1])
    return _archive(folder / "many_laughs.pth", code + b".")


def laughing_texts(folder: Path) -> Path:
    """A mapping of a name of 1 MB to itself, a thousand times under other names."""
    content = {f"{'a.' * 60_000}{number}": torch.ones(1) for number in range(40)}
    torch.save(content, folder / "laughing_texts.pth")
    return folder / "laughing_texts.pth"


def many_keys(folder: Path) -> Path:
    """Two hundred thousand tensors that share one number, under as many prefixes."""
    one = torch.ones(1)
    content = {f"a{number}.b.c.weight": one for number in range(200_000)}
    torch.save(content, folder / "many_keys.pth")
    return folder / "many_keys.pth"


def inflated_storage(folder: Path) -> Path:
    """1.2 MB that inflate to 1.2 GB."""
    data = io.BytesIO()
    torch.save({**tiny(), "big.weight": torch.zeros(1)}, data)
    path = folder / "inflated_storage.pth"
    size = 300_000_000
    with zipfile.ZipFile(data) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = _stretch(content, size)
            if name.endswith("data/" + str(len(tiny()))):
                content = b""
                with new.open(name, "w", force_zip64=True) as entry:
                    for _ in range(size * 4 // 10**7):
                        entry.write(bytes(10**7))
                continue
            new.writestr(name, content)
    return path


def _stretch(code: bytes, size: int) -> bytes:
    """The last storage and the tensor of it with more values than they had."""
    number = b"J" + struct.pack("<i", size)
    at = code.rindex(b"K\x01tq")  # the storage's count of values
    code = code[:at] + number + code[at + 2 :]
    at = code.rindex(b"K\x01\x85")  # the tensor's shape
    return code[:at] + number + code[at + 2 :]


def inflated_pickle(folder: Path) -> Path:
    """2 MB of a pickle that inflate to 2 GB of text."""
    path = folder / "inflated_pickle.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/version", "3\n")
        with packed.open("archive/data.pkl", "w", force_zip64=True) as entry:
            entry.write(b"\x80\x04\x8d" + struct.pack("<Q", 2_000_000_000))
            for _ in range(200):
                entry.write(b"a" * 10**7)
            entry.write(b".")
    return path


def _saved(folder: Path, name: str, content: Any) -> Path:
    torch.save(content, folder / name)
    return folder / name


def expanded(folder: Path) -> Path:
    """One number that is said to be 10^10 of them."""
    return _saved(
        folder, "expanded.pth", {**tiny(), "head.0.weight": torch.ones(1).expand(HUGE, HUGE)}
    )


def expanded_half(folder: Path) -> Path:
    """The same in a type that is cast, in the place of every weight."""
    one = torch.ones(1, dtype=torch.float16)
    return _saved(
        folder,
        "expanded_half.pth",
        {k: one.expand(4096, *v.shape, 64, 64) for k, v in tiny().items()},
    )


def sparse(folder: Path) -> Path:
    places = torch.zeros((2, 1), dtype=torch.long)
    zeros = torch.sparse_coo_tensor(places, [1.0], (HUGE, HUGE), check_invariants=True)
    return _saved(folder, "sparse.pth", {**tiny(), "head.0.weight": zeros})


def _called(module: str, name: str, args: bytes) -> bytes:
    return b"\x80\x02}X\x06\x00\x00\x00paramsc" + f"{module}\n{name}\n".encode() + args + b"Rs."


def bytearray_of(folder: Path) -> Path:
    size = b"\x8a\x06" + struct.pack("<q", 10**11)[:6]
    return _archive(folder / "bytearray_of.pth", _called("builtins", "bytearray", size + b"\x85"))


def array_of(folder: Path) -> Path:
    """numpy's own type, called with a shape."""
    size = b"\x8a\x06" + struct.pack("<q", 10**11)[:6]
    code = b"\x80\x02}X\x06\x00\x00\x00params}X\x01\x00\x00\x00acnumpy\nndarray\n"
    return _archive(folder / "array_of.pth", code + size + b"\x85\x85Rss.")


def old_format(folder: Path) -> Path:
    """The format before archives, with a storage of 2^60 values."""
    path = folder / "old_format.pth"
    torch.save({"a.weight": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    at = content.index(b"K\x03")
    path.write_bytes(content[:at] + b"\x8a\x08" + struct.pack("<q", 2**60) + content[at + 2 :])
    return path


def many_entries(folder: Path) -> Path:
    path = folder / "many_entries.pth"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        packed.writestr("archive/version", "3\n")
        for number in range(60_000):
            packed.writestr(f"archive/data/{number}", b"")
    return path


def code_in_pickle(folder: Path) -> Path:
    code = b"\x80\x02cos\nsystem\n" + b"X\x0b\x00\x00\x00touch PWNED" + b"\x85R."
    return _archive(folder / "code_in_pickle.pth", code)


def _safetensors(path: Path, header: bytes, length: int | None = None, body: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
    return path


def long_header(folder: Path) -> Path:
    return _safetensors(folder / "long_header.safetensors", b"{" + b" " * 99, 2**62)


def nested_header(folder: Path) -> Path:
    header = b'{"__metadata__":{"hyper":' + b"[" * 10**6 + b"]" * 10**6 + b"}}"
    return _safetensors(folder / "nested_header.safetensors", header)


def nested_hyper(folder: Path) -> Path:
    text = json.dumps({"arch": "edsr", "hyper": "[" * 10**6})
    header = b'{"__metadata__":' + text.encode() + b',"a":{"dtype":"F32","shape":[1],'
    return _safetensors(
        folder / "nested_hyper.safetensors", header + b'"data_offsets":[0,4]}}', body=bytes(4)
    )


def overflowing_shape(folder: Path) -> Path:
    text = b'{"a":{"dtype":"F32","shape":[4294967296,4294967297],"data_offsets":[0,4]}}'
    return _safetensors(folder / "overflowing_shape.safetensors", text, body=bytes(4))


def empty_tensors(folder: Path) -> Path:
    """Sixty thousand tensors without a value, whose other sides are huge."""
    one = {"dtype": "F32", "shape": [0, 2**31], "data_offsets": [0, 0]}
    header = json.dumps({f"a.{number}.weight": one for number in range(60_000)})
    return _safetensors(folder / "empty_tensors.safetensors", header.encode())


CHECKPOINTS: Sequence[Maker] = (
    holds_itself,
    list_holds_itself,
    nested_dicts,
    nested_lists,
    many_laughs,
    laughing_texts,
    many_keys,
    inflated_storage,
    inflated_pickle,
    expanded,
    expanded_half,
    sparse,
    bytearray_of,
    array_of,
    old_format,
    many_entries,
    code_in_pickle,
    long_header,
    nested_header,
    nested_hyper,
    overflowing_shape,
    empty_tensors,
)
