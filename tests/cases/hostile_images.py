"""Images that a stranger may hand over to fill the machine, some of a few bytes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

from hostile_checkpoints import HUGE, Maker


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
