"""Text from outside in Markdown and HTML: it is shown, and never read as markup.

Every value that a template puts into a page goes through `cell` or `in_html`, but for what is
`Markup`: made by us, and escaped.
"""

from __future__ import annotations

import re

from markupsafe import Markup

from mipkd.core.names import printable

# What GitHub's Markdown reads: code, emphasis, links, tables, tags, references to characters; and
# addresses, which it makes links of.
_SPECIAL = re.compile(r"[\\`*\[\]|]|~(?=~)|(?<![^\W_])_|_(?![^\W_])")
_REFERENCE = re.compile(r"&(?=#?\w+;)")
_BLOCK = re.compile(r"^( ?\d*)(?=[#>]|[-+]\s|[.)]\s)")
_ADDRESS = re.compile(r"(?i)(?:(?<=http:)|(?<=https:)|(?<=ftp:))(?=//)|(?<=\bwww)(?=\.)")


def cell(text: object) -> Markup:
    """Text on one line that cannot break out of its place in Markdown, such as a table's cell."""
    if isinstance(text, Markup):
        return text
    one_line = printable(re.sub(r"\s+", " ", str(text)))
    escaped = _SPECIAL.sub(r"\\\g<0>", _REFERENCE.sub("&amp;", one_line)).replace("<", "&lt;")
    return Markup(_BLOCK.sub(r"\1\\", _ADDRESS.sub(r"\\", escaped)))


def code(text: object) -> Markup:
    """Text for between two backticks, outside of tables."""
    return Markup(printable(" ".join(str(text).split())).replace("`", "'"))


def in_html(text: object) -> object:
    """A value for an HTML page, which escapes the markup in it itself."""
    return text if isinstance(text, Markup) else printable(str(text), keep="\n\t")
