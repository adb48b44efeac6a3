"""Archives of others: what they say that they hold is looked at before it is taken out."""

from __future__ import annotations

import io
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from mipkd.core.errors import UsageError

_FEW_BYTES = 2**26
_MOST_TIMES = 50  # its own size; pictures of one colour reach that, weights hardly twice


def check_inflation(file: Path | IO[bytes], name: object = None) -> None:
    """Refuse a zip that would grow to many times its size; what is no zip passes.

    Python's reader and torch's stop at the sizes that the directory of the archive states.

    Raises:
        UsageError: says both sizes.
    """
    with suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        with zipfile.ZipFile(file) as packed:
            whole = sum(one.file_size for one in packed.infolist())
            assert packed.fp is not None, "it is open"
            stored = packed.fp.seek(0, io.SEEK_END)  # entries may share bytes
        if whole > max(_FEW_BYTES, _MOST_TIMES * stored):
            raise UsageError(
                f"{name or file}: an archive of {stored} bytes that claims to hold {whole}",
                hint="it is damaged, or made to fill the memory: get it anew from its maker",
            )
