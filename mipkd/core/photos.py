"""The store of decoded photos: two flat uint8 files and an index, mapped into memory."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mipkd.core.images import ByteArray
from mipkd.core.records import Photos


@dataclass(frozen=True)
class Photo:
    """One photo's pixels, HR and LR, shape (H, W, 3)."""

    name: str
    hr_HWC: ByteArray | None  # None of an LR frame without truth
    lr_HWC: ByteArray

    @property
    def largest(self) -> ByteArray:
        """The largest image that there is of it, (H, W, 3)."""
        return self.lr_HWC if self.hr_HWC is None else self.hr_HWC


class PhotoWriter:
    """Appends photos to a store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: list[dict[str, object]] = []
        self._files = {kind: (folder / f"{kind}.u8").open("wb") for kind in ("hr", "lr")}

    def add(self, name: str, hr_HWC: ByteArray | None, lr_HWC: ByteArray) -> None:
        """Write one photo's pixels."""
        row: dict[str, object] = {"name": name}
        for kind, image in (("hr", hr_HWC), ("lr", lr_HWC)):
            if image is None:
                continue
            row[kind] = {"at": self._files[kind].tell(), "size": list(image.shape[:2])}
            self._files[kind].write(np.ascontiguousarray(image).data)
        self.index.append(row)

    def close(self) -> None:
        """Flush the pixels and write the index."""
        with ExitStack() as closing:  # on a full disk each close can fail
            for file in self._files.values():
                closing.enter_context(file)
        (self.folder / "index.json").write_text(json.dumps(self.index))


def open_photos(photos: Photos) -> list[Photo]:
    """The photos of a store, none of them read before it is used."""
    rows = json.loads((photos.folder / "index.json").read_text())
    kinds = dict.fromkeys(kind for row in rows for kind in ("hr", "lr") if kind in row)
    maps = {kind: np.memmap(photos.folder / f"{kind}.u8", np.uint8, mode="r") for kind in kinds}

    def view(kind: str, at: int, size: tuple[int, int]) -> ByteArray:
        height, width = size
        return maps[kind][at : at + height * width * 3].reshape(height, width, 3)

    return [
        Photo(
            row["name"], view("hr", **row["hr"]) if "hr" in row else None, view("lr", **row["lr"])
        )
        for row in rows
    ]
