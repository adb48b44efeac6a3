"""What a file that is no checkpoint really is, by its first bytes, so that a message can say it."""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

_ONNX_HINT = "a finished student as an ONNX graph is given with --model"
_STATE_HINT = "give a state dict saved by torch.save, or a .safetensors file"
_DOWNLOAD_HINT = "download the file itself: the link led to a page about it, or to a sign-in"
_LOAD_HINT = "load it where you trust it and save its state_dict, best as .safetensors"
_RESAVE_HINT = "load it where you trust it and write what it holds with torch.save"
_START = 4096  # bytes that are looked at
_MOST_CODE = 2**24  # bytes of a pickle, which names tensors and does not hold them
_HARMLESS = r"torch\.(?!nn\.|jit\.)|collections\.|numpy\.|argparse\.Namespace|_codecs\."

# (offset, bytes, what it is, hint)
_SIGNS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"BZh", "a bzip2 archive", "unpack it first"),
    (0, b"\xfd7zXZ", "an xz archive", "unpack it first"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it first"),
    (0, b"Rar!", "a RAR archive", "unpack it first"),
    (257, b"ustar", "a tar archive", "unpack it first"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write", _STATE_HINT),
    (0, b"GGUF", "a GGUF file of llama.cpp", _STATE_HINT),
    (4, b"TFL3", "a LiteRT (TensorFlow Lite) model", _STATE_HINT),
    (0, b"\x93NUMPY", "a NumPy array", _STATE_HINT),
    (0, b"\x89PNG", "an image", _STATE_HINT),
    (0, b"\xff\xd8\xff", "an image", _STATE_HINT),
    (0, b"%PDF", "a PDF document", _STATE_HINT),
    (0, b"ftrt", "a TensorRT engine", _STATE_HINT),
    (0, b"ptrt", "a TensorRT engine", _STATE_HINT),
)


def describe_folder(path: Path) -> tuple[str, str]:
    """What is given instead of a file, and a hint."""
    inside = [f for f in sorted(path.iterdir()) if f.suffix in (".pth", ".pt", ".safetensors")]
    if inside:
        return "a folder, not a file", f"give a file of it, like {inside[0].name}"
    return "a folder, not a file", "give a .pth, .pt or .safetensors file"


def describe_file(path: Path) -> tuple[str, str]:
    """What a file that torch cannot read is, and a hint.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(_START)
    if not start:
        return "an empty file", "download or copy it again"
    for offset, sign, what, hint in _SIGNS:
        if start[offset:].startswith(sign):
            return what, hint
    if start.startswith(b"PK"):
        return _describe_zip(path, size)
    if re.match(rb"\x80[\x02-\x05]", start):
        if _is_plain_pickle(path):
            return "a plain pickle, not one of torch.save", _RESAVE_HINT
        return f"a pickle that is cut short or damaged, {size} bytes", "download or copy it again"
    if _is_onnx(path, start):
        return "an ONNX graph", _ONNX_HINT
    if not start.strip(b"\0"):
        return f"{size} bytes of zeros", "download or copy it again"
    return _describe_text(start) or (f"{size} bytes of no format that is known", _STATE_HINT)


def _is_plain_pickle(path: Path) -> bool:
    """Whether one whole pickle is all of the file: torch.save's old format has several."""
    try:
        with path.open("rb") as file:
            for _ in pickletools.genops(file):
                pass
            return not file.read(1)
    except (ValueError, OSError, RuntimeError, MemoryError, OverflowError):
        return False


def find_code(path: Path) -> str:
    """The first function that a pickle, bare or in torch's archive, would call beside what makes
    tensors; "" where none is found. Nothing is called: its opcodes are only listed.

    torch itself stops at an opcode that it does not know, before it sees what the pickle asks for.
    """
    texts: list[str] = []  # as they come to the stack
    memo: list[str] = []
    last = ""  # what the opcode before put there
    try:
        for opcode, found, _ in pickletools.genops(_pickle_in(path)):
            if opcode.name == "MEMOIZE":
                memo.append(last)
                continue
            last = found if isinstance(found, str) and opcode.name != "GLOBAL" else ""
            if opcode.name in ("BINGET", "LONG_BINGET") and memo:
                last = memo[int(found or 0)]
            texts += [last] if last else []
            name = str(found).replace(" ", ".") if opcode.name == "GLOBAL" else ""
            if opcode.name == "STACK_GLOBAL":
                name = ".".join(texts[-2:])
            if name and not re.match(_HARMLESS, name):
                return name
    except (
        ValueError,
        OSError,
        LookupError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
    ):
        return ""  # damaged, or no pickle
    return ""


def _pickle_in(path: Path) -> bytes:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return file.read(_MOST_CODE)
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith("data.pkl")), "")
        with archive.open(name) as file:
            return file.read(_MOST_CODE)


def _describe_zip(path: Path, size: int) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return f"an archive that is cut short, {size} bytes", "download or copy it again"
    tails = {name.rpartition("/")[2] for name in names}
    if any("/code/" in name for name in names) and "constants.pkl" in tails:
        return "a TorchScript archive: a program, not only tensors", _LOAD_HINT
    if tails & {"archive_format", "serialized_exported_program.json"}:
        return "a program saved by torch.export, not only tensors", _LOAD_HINT
    if "model.weights.h5" in tails:
        return "a Keras model", _STATE_HINT
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive", _STATE_HINT
    if "data.pkl" in tails:
        return f"a checkpoint that is damaged, {size} bytes", "download or copy it again"
    inside = next((n for n in names if n.endswith((".pth", ".pt", ".safetensors"))), "")
    hint = f"unpack it and give its {inside!r}" if inside else _STATE_HINT
    return f"a zip archive of something else: {', '.join(names[:3]) or 'nothing'}", hint


def _is_onnx(path: Path, start: bytes) -> bool:
    """ONNX is a protobuf without a sign of its own: its version comes first, then its producer, an
    operator set or the graph."""
    return bool(re.match(rb"\x08[\x01-\x20][\x12\x3a\x42]", start)) or path.suffix == ".onnx"


def _describe_text(start: bytes) -> tuple[str, str] | None:
    try:
        text = start.decode("utf-8-sig", errors="ignore" if len(start) == _START else "strict")
    except UnicodeDecodeError:
        return None
    if re.search(r"[\x00-\x08\x0e-\x1f]", text):
        return None
    first = text.strip().partition("\n")[0].strip()
    if first.startswith("version https://git-lfs.github.com"):
        size = re.search(r"^size (\d+)", text, re.MULTILINE)
        stands_for = f" for {size[1]} bytes" if size else ""
        return f"a Git LFS pointer{stands_for}, not the file", "git lfs pull fetches the file"
    if re.search(r"<!doctype html|<html|<head|<body", text, re.IGNORECASE):
        return "a web page (HTML)", _DOWNLOAD_HINT
    if first.startswith("<"):
        return "an XML text", _DOWNLOAD_HINT
    if first.startswith(("{", "[")):
        return "a JSON text", _STATE_HINT
    if first.startswith("7767517"):
        return "an ncnn param file", _STATE_HINT
    return f"a text that begins with {first[:40]!r}", _STATE_HINT
