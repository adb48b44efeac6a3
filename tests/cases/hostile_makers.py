"""Files that a stranger may hand over to stop or fill the machine; none holds more than a few MB.

Each maker writes one into a folder and gives its path. Nothing here does harm: what would run only
touches a file beside it.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from checkpoint_makers import tiny
from graph_makers import Array, doubled, node, repeat_weight, save
from onnx import TensorProto, helper, numpy_helper

Maker = Callable[[Path], Path]
HUGE = 10**5  # a side whose square is more than any memory


# --- checkpoints


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


# --- graphs: each gives a picture twice as large, if it ever ends


def _graph(
    folder: Path, name: str, nodes: list[onnx.NodeProto], arrays: dict[str, Array] | None = None
) -> Path:
    """A graph whose nodes give "same" from "lr"; then it is doubled."""
    arrays = {"wide": repeat_weight(), **(arrays or {})}
    return save(folder / f"{name}.onnx", [*nodes, *doubled("same")], arrays)


def good_graph(folder: Path) -> Path:
    """What the others would be without their harm."""
    return _graph(folder, "good_graph", [node("Identity", "lr", "same")])


def endless_loop(folder: Path) -> Path:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "c", "c2"), node("Identity", "v", "v2")],
        "body",
        [
            value("i", TensorProto.INT64, []),
            value("c", TensorProto.BOOL, []),
            value("v", TensorProto.FLOAT, None),
        ],
        [value("c2", TensorProto.BOOL, []), value("v2", TensorProto.FLOAT, None)],
    )
    arrays = {"trips": np.array(2**62, np.int64), "go": np.array(True)}
    return _graph(folder, "endless_loop", [node("Loop", "trips go lr", "same", body=body)], arrays)


def endless_scan(folder: Path) -> Path:
    """A Scan over 10^9 rows, that are made when it runs."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "v", "v2"), node("Identity", "x", "y")],
        "body",
        [value("v", TensorProto.FLOAT, None), value("x", TensorProto.UINT8, None)],
        [value("v2", TensorProto.FLOAT, None), value("y", TensorProto.UINT8, None)],
    )
    zero = numpy_helper.from_array(np.zeros(1, np.uint8))
    nodes = [
        node("ConstantOfShape", "rows", "many", value=zero),
        node("Scan", "lr many", "same ys", body=body, num_scan_inputs=1),
    ]
    return _graph(folder, "endless_scan", nodes, {"rows": np.array([500_000_000, 1], np.int64)})


def _spread(folder: Path, name: str, nodes: list[onnx.NodeProto], arrays: Any) -> Path:
    """Nodes that give a tensor "much" of which a single number is added to the image."""
    more = [node("ReduceMax", "much", "one", keepdims=0), node("Mul", "one zero", "nothing")]
    more += [node("Add", "lr nothing", "same")]
    return _graph(folder, name, [*nodes, *more], {"zero": np.zeros((), np.float32), **arrays})


def constant_of_shape(folder: Path) -> Path:
    one = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [node("ConstantOfShape", "shape", "much", value=one)]
    return _spread(
        folder, "constant_of_shape", nodes, {"shape": np.array([HUGE, HUGE * 3], np.int64)}
    )


def expand(folder: Path) -> Path:
    nodes = [node("ReduceMax", "lr", "a", keepdims=0), node("Expand", "a shape", "much")]
    return _spread(folder, "expand", nodes, {"shape": np.array([HUGE, HUGE * 3], np.int64)})


def tile(folder: Path) -> Path:
    nodes = [node("Tile", "lr times", "much")]
    return _spread(folder, "tile", nodes, {"times": np.array([1, 1, 9000, 9000], np.int64)})


def resize(folder: Path) -> Path:
    nodes = [node("Resize", "lr  times", "much", mode="nearest")]
    return _spread(folder, "resize", nodes, {"times": np.array([1, 1, 3000, 3000], np.float32)})


def pad(folder: Path) -> Path:
    nodes = [node("Pad", "lr pads", "much")]
    pads = np.array([0, 0, HUGE, HUGE, 0, 0, HUGE, HUGE], np.int64)
    return _spread(folder, "pad", nodes, {"pads": pads})


def pad_where_it_runs(folder: Path) -> Path:
    """By how much is told by the image's size, so that nothing can be computed before."""
    nodes = [node("Shape", "lr", "size"), node("Mul", "size much_more", "pads4")]
    nodes += [node("Concat", "pads4 pads4", "pads", axis=0), node("Pad", "lr pads", "much")]
    return _spread(
        folder, "pad_where_it_runs", nodes, {"much_more": np.array([0, 0, 3000, 3000], np.int64)}
    )


def range_of(folder: Path) -> Path:
    nodes = [node("Range", "a b c", "much")]
    ends = {"a": 0, "b": 6e10, "c": 1}
    return _spread(
        folder,
        "range_of",
        nodes,
        {k: np.array(v, np.float64).astype("f4") for k, v in ends.items()},
    )


def one_hot(folder: Path) -> Path:
    nodes = [node("OneHot", "ids depth values", "much")]
    arrays = {"ids": np.zeros(1000, np.int64), "depth": np.array(10**8, np.int64)}
    return _spread(folder, "one_hot", nodes, {**arrays, "values": np.array([0, 1], np.float32)})


def slow_products(folder: Path) -> Path:
    """A thousand products of matrices of 6000 x 6000: a day, in a file of a few kB."""
    one = numpy_helper.from_array(np.ones(1, np.float32))
    nodes = [node("ConstantOfShape", "shape", "m0", value=one)]
    nodes += [node("ReduceMax", "lr", "a", keepdims=0), node("Mul", "m0 a", "p0")]
    nodes += [node("MatMul", f"p{n} m0", f"p{n + 1}") for n in range(1000)]
    nodes += [node("Identity", "p1000", "much")]
    return _spread(folder, "slow_products", nodes, {"shape": np.array([6000, 6000], np.int64)})


def slow_convolution(folder: Path) -> Path:
    """A kernel of 3000 x 3000 over an image that is padded for it."""
    one = numpy_helper.from_array(np.ones(1, np.float32))
    pads = [1500, 1500, 1499, 1499]
    nodes = [
        node("ConstantOfShape", "shape", "kernel", value=one),
        node("Conv", "lr kernel", "much", pads=pads, kernel_shape=[3000, 3000]),
    ]
    return _spread(
        folder, "slow_convolution", nodes, {"shape": np.array([3, 3, 3000, 3000], np.int64)}
    )


def functions_of_functions(folder: Path) -> Path:
    """Each calls the one before ten times: 10^12 nodes once they are inlined."""
    functions, opsets = [], [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    for number in range(12):
        kind = f"F{number - 1}" if number else "Identity"
        domain = {"domain": "f"} if number else {}
        inside = [node(kind, f"x{n}", f"x{n + 1}", **domain) for n in range(10)]
        functions.append(helper.make_function("f", f"F{number}", ["x0"], ["x10"], inside, opsets))
    value = helper.make_tensor_value_info
    ends = [
        value("lr", TensorProto.FLOAT, [1, 3, "h", "w"]),
        value("sr", TensorProto.FLOAT, ["n", "c", "H", "W"]),
    ]
    graph = helper.make_graph(
        [node("F11", "lr", "same", domain="f"), *doubled("same")],
        "g",
        ends[:1],
        ends[1:],
        [numpy_helper.from_array(repeat_weight(), "wide")],
    )
    model = helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)
    onnx.save(model, folder / "functions_of_functions.onnx")
    return folder / "functions_of_functions.onnx"


def declared_weight(folder: Path) -> Path:
    """A weight of 10^10 values, of which the file holds one."""
    path = _graph(folder, "declared_weight", [node("Identity", "lr", "same")])
    model = onnx.load(path)
    tensor = model.graph.initializer.add()
    tensor.name, tensor.data_type, tensor.raw_data = "big", TensorProto.FLOAT, bytes(4)
    tensor.dims[:] = [HUGE, HUGE]
    path.write_bytes(model.SerializeToString())
    return path


def sparse_weight(folder: Path) -> Path:
    """A weight of 10^10 values, all but one zero."""
    path = _graph(folder, "sparse_weight", [node("Identity", "lr", "same")])
    model = onnx.load(path)
    values = numpy_helper.from_array(np.ones(1, np.float32), "big")
    places = numpy_helper.from_array(np.zeros(1, np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [HUGE, HUGE]))
    path.write_bytes(model.SerializeToString())
    return path


def weights_elsewhere(folder: Path) -> Path:
    """Weights that are said to lie in a file of the system."""
    path = _graph(folder, "weights_elsewhere", [node("Identity", "lr", "same")])
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../../../../../../etc/passwd"
    path.write_bytes(model.SerializeToString())
    return path


def many_nodes(folder: Path) -> Path:
    nodes = [node("Identity", f"x{n}" if n else "lr", f"x{n + 1}") for n in range(50_000)]
    return _graph(folder, "many_nodes", [*nodes, node("Identity", "x50000", "same")])


def text_for_a_graph(folder: Path) -> Path:
    path = folder / "text_for_a_graph.onnx"
    path.write_bytes(b"\x08\x08\x3a" + b"\xff" * 9 + b"\x7f" + b"[" * 10**6)
    return path


GRAPHS: Sequence[Maker] = (
    endless_loop,
    endless_scan,
    constant_of_shape,
    expand,
    tile,
    resize,
    pad,
    pad_where_it_runs,
    range_of,
    one_hot,
    slow_products,
    slow_convolution,
    functions_of_functions,
    declared_weight,
    sparse_weight,
    weights_elsewhere,
    many_nodes,
    text_for_a_graph,
)


# --- images


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(path: Path, width: int, height: int, *chunks: bytes, colour: int = 2) -> Path:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + _chunk(b"IEND", b""))
    return path


def _deflated(count: int) -> bytes:
    """Zeros, a few MB for a few GB."""
    packer, found = zlib.compressobj(9), []
    for _ in range(count // 10**6):
        found.append(packer.compress(bytes(10**6)))
    return b"".join([*found, packer.compress(bytes(count % 10**6)), packer.flush()])


def png_of_a_header(folder: Path) -> Path:
    return _png(folder / "png_of_a_header.png", HUGE, HUGE)


def png_of_zeros(folder: Path) -> Path:
    """1.2 MB that decode to 1.2 GB, and to more where they are converted."""
    side = 20_000
    data = _chunk(b"IDAT", _deflated((3 * side + 1) * side))
    return _png(folder / "png_of_zeros.png", side, side, data)


def png_wide(folder: Path) -> Path:
    data = _chunk(b"IDAT", _deflated(3 * 400_000_000 + 1))
    return _png(folder / "png_wide.png", 400_000_000, 1, data)


def png_with_text(folder: Path) -> Path:
    text = _chunk(b"zTXt", b"Comment\0\0" + _deflated(10**9))
    return _png(folder / "png_with_text.png", 8, 8, text, _chunk(b"IDAT", _deflated(25 * 8)))


def png_with_profile(folder: Path) -> Path:
    profile = _chunk(b"iCCP", b"sRGB\0\0" + _deflated(10**9))
    return _png(folder / "png_with_profile.png", 8, 8, profile, _chunk(b"IDAT", _deflated(25 * 8)))


def _of_size(folder: Path, name: str, kind: str, at: int, form: str, *values: int) -> Path:
    """A small image of Pillow's with other numbers in its header."""
    from PIL import Image

    data = io.BytesIO()
    Image.new("RGB", (8, 8)).save(data, kind)
    content = bytearray(data.getvalue())
    at = at if at >= 0 else content.index(b"\xff\xc0") + 5
    struct.pack_into(form, content, at, *values)
    (folder / name).write_bytes(content)
    return folder / name


def jpeg(folder: Path) -> Path:
    return _of_size(folder, "jpeg.jpg", "JPEG", -1, ">HH", 65500, 65500)


def gif(folder: Path) -> Path:
    return _of_size(folder, "gif.png", "GIF", 6, "<HH", 65535, 65535)


def bmp(folder: Path) -> Path:
    return _of_size(folder, "bmp.bmp", "BMP", 18, "<ii", 2**30, 2**30)


def tiff(folder: Path) -> Path:
    """2 MB in deflated strips that hold 2 GB."""
    strip, rows, width = zlib.compress(bytes(60_000_000), 9), 1000, 20_000
    height, count = 22_000, 22
    at = 8
    offsets = [at + number * len(strip) for number in range(count)]
    ends = at + count * len(strip)
    arrays = struct.pack(f"<{count}I", *offsets) + struct.pack(f"<{count}I", *[len(strip)] * count)
    bits = struct.pack("<3H", 8, 8, 8)
    tags = [
        *((256, 4, 1, width), (257, 4, 1, height)),
        (258, 3, 3, ends + len(arrays)),
        *((259, 3, 1, 8), (262, 3, 1, 2)),
        (273, 4, count, ends),
        *((277, 3, 1, 3), (278, 4, 1, rows)),
        (279, 4, count, ends + 4 * count),
    ]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = struct.pack("<2sHI", b"II", 42, ends + len(arrays) + len(bits))
    path = folder / "tiff.tif"
    path.write_bytes(head + strip * count + arrays + bits + table + bytes(4))
    return path


def tiff_tile(folder: Path) -> Path:
    """8 x 8 pixels in a tile of 65520 x 65520."""
    data, side = zlib.compress(bytes(64)), 65520
    tags = [(256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)]
    tags += [(277, 3, 1, 1), (322, 4, 1, side), (323, 4, 1, side)]
    tags += [(324, 4, 1, 8), (325, 4, 1, len(data))]
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    path = folder / "tiff_tile.tif"
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + table + bytes(4))
    return path


def tiff_in_a_ring(folder: Path) -> Path:
    """Pages whose last is followed by the first."""
    from PIL import Image

    path = folder / "tiff_in_a_ring.tif"
    Image.new("RGB", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    struct.pack_into("<I", content, at + 2 + 12 * count, at)
    path.write_bytes(content)
    return path


def webp(folder: Path) -> Path:
    """The largest that WebP has, of one colour."""
    from PIL import Image

    path = folder / "webp.webp"
    Image.new("RGB", (16383, 16383)).save(path, lossless=True, method=0)
    return path


def postscript(folder: Path) -> Path:
    """A program, for which Pillow would start Ghostscript."""
    path = folder / "postscript.png"
    path.write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(PWNED) (w) file closefile\nshowpage\n"
    )
    return path


def portable_pixmap(folder: Path) -> Path:
    path = folder / "portable_pixmap.png"
    path.write_bytes(b"P6 99999 99999 255\n" + bytes(99))
    return path


IMAGES: Sequence[Maker] = (
    png_of_a_header,
    png_of_zeros,
    png_wide,
    png_with_text,
    png_with_profile,
    jpeg,
    gif,
    bmp,
    tiff,
    tiff_tile,
    webp,
    postscript,
    portable_pixmap,
)


# --- bundles: a good one is changed, its hashes made to fit


def refit(bundle: Path, **changes: Any) -> None:
    """Make the manifest list what is there, as whoever changes a bundle can."""
    from pipeline.bundle import manifest

    stated = replace(manifest.read(bundle), files=manifest.list_files(bundle), **changes)
    manifest.write(stated, bundle)


def with_graph(make: Maker) -> Callable[[Path], None]:
    """Put a hostile graph in the place of each model."""

    def change(bundle: Path) -> None:
        with TemporaryDirectory() as folder:
            made = make(Path(folder)).read_bytes()
        for file in bundle.glob("model/*/*.onnx"):
            file.write_bytes(made)
        refit(bundle)

    return change


def with_golden(make: Maker) -> Callable[[Path], None]:
    """Put a hostile image in the place of a golden one."""

    def change(bundle: Path) -> None:
        with TemporaryDirectory() as folder:
            made = make(Path(folder)).read_bytes()
        for file in bundle.glob("golden/*/*.png"):
            file.write_bytes(made)
        refit(bundle)

    return change


def with_text(name: str, text: str) -> Callable[[Path], None]:
    """Put a text in the place of a file."""

    def change(bundle: Path) -> None:
        (bundle / name).write_text(text)
        if name != "manifest.json":
            refit(bundle)

    return change


def with_stated(*place: Any, value: Any) -> Callable[[Path], None]:
    """Change one value of the manifest, and its seal with it."""
    from pipeline.bundle import manifest

    def change(bundle: Path) -> None:
        file = bundle / "manifest.json"
        stated = inner = json.loads(file.read_text())
        for name in place[:-1]:
            inner = inner[name]
        inner[place[-1]] = value
        file.write_text(json.dumps(stated))
        with suppress(Exception):  # what cannot be read cannot be sealed
            manifest.write(manifest.read(bundle), bundle)

    return change


BUNDLES: Mapping[str, Callable[[Path], None]] = {
    "endless loop": with_graph(endless_loop),
    "endless scan": with_graph(endless_scan),
    "padded where it runs": with_graph(pad_where_it_runs),
    "slow products": with_graph(slow_products),
    "golden image of a header": with_golden(png_of_a_header),
    "golden image of zeros": with_golden(png_of_zeros),
    "nested manifest": with_text("manifest.json", "[" * 10**6),
    "nested provenance": with_text("provenance.json", '{"config":' * 10**5),
    "long number": with_stated("scale", value=10**4000),
    "huge scale": with_stated("models", 0, "scale", value=10**9),
    "huge multiple": with_stated("models", 0, "multiple", value=10**9),
    "huge margin": with_stated("models", 0, "margin", value=10**9),
    "another folder": with_stated("models", 0, "file", value="../../../../etc/passwd"),
    "an absolute path": with_stated("models", 0, "file", value="/etc/passwd"),
    "an unknown option": with_stated("models", 0, "options", value={"session.no_such": "1"}),
    "a name that leads out": with_stated("models", 0, "target", value="../../x"),
}


# --- configurations, and what a kit brought back


CONFIGS: Mapping[str, str] = {
    "nested lists": "data = " + "[" * 10**5,
    "nested tables": "[" + "a." * 10**5 + "b]",
    "nested inline": "x = " + "{a=" * 10**5,
    "long number": "scale = " + "9" * 10**5,
    "number of steps": "[distill]\nsteps = 1e400",
    "endless date": "scale = 9999-99-99T99:99:99",
    "no text": 'a = "\u0000"',
}


def results_bomb(folder: Path) -> Path:
    """0.2 MB whose results.json would be 200 MB."""
    path = folder / "results_bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("seal", "0")
        with packed.open("results.json", "w", force_zip64=True) as entry:
            for _ in range(200):
                entry.write(b" " * 10**6)
    return path


def results_nested(folder: Path) -> Path:
    path = folder / "results_nested.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("results.json", '{"a":' * 10**6)
        packed.writestr("seal", "0")
    return path


def results_elsewhere(folder: Path) -> Path:
    """Names that lead out of where it is unpacked, if it were."""
    path = folder / "results_elsewhere.zip"
    text = json.dumps({"schema": 2, "job": "0", "files": {"../../PWNED.npy": "0"}})
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("results.json", text)
        packed.writestr("seal", hashlib.sha256(b"0" + text.encode()).hexdigest())
        packed.writestr("../../PWNED.npy", b"harm")
    return path


def results_of_shapes(folder: Path) -> Path:
    """An output that claims to have 10^10 values."""
    path, data = folder / "results_of_shapes.zip", io.BytesIO()
    head = {"descr": "|u1", "fortran_order": False, "shape": (HUGE, HUGE, 3)}
    np.lib.format.write_array_header_1_0(data, head)
    part = data.getvalue()
    files = {"outputs/0/0.npy": hashlib.sha256(part).hexdigest()}
    text = json.dumps({"schema": 2, "job": "0", "files": files})
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("results.json", text)
        packed.writestr("seal", hashlib.sha256(b"0" + text.encode()).hexdigest())
        packed.writestr("outputs/0/0.npy", part)
    return path


RESULTS: Sequence[Maker] = (results_bomb, results_nested, results_elsewhere, results_of_shapes)
