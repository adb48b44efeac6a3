"""What the licence of the weights that a bundle comes from forbids, or leaves open."""

from __future__ import annotations

import re

from mipkd.core.evidence import Evidence
from mipkd.core.records import Model

_UNKNOWN = ("", "unknown", "none", "other")
_NON_COMMERCIAL = re.compile(
    r"non.?commercial|research.only|academic|\bby-nc\b|(^|-)nc(-|$)", re.IGNORECASE
)
# SPDX identifiers that OpenModelDB and the Hugging Face Hub both know, the latter in small letters.
# https://huggingface.co/docs/hub/repositories-licenses
_SPDX = (
    "0BSD AFL-3.0 AGPL-3.0 Apache-2.0 Artistic-2.0 BSD-2-Clause BSD-3-Clause BSL-1.0 CC0-1.0 "
    "CC-BY-2.0 CC-BY-3.0 CC-BY-4.0 CC-BY-NC-2.0 CC-BY-NC-3.0 CC-BY-NC-4.0 CC-BY-NC-ND-3.0 "
    "CC-BY-NC-ND-4.0 CC-BY-NC-SA-2.0 CC-BY-NC-SA-3.0 CC-BY-NC-SA-4.0 CC-BY-ND-4.0 CC-BY-SA-3.0 "
    "CC-BY-SA-4.0 ECL-2.0 EPL-2.0 EUPL-1.1 GPL-2.0 GPL-3.0 ISC LGPL-2.1 LGPL-3.0 MIT MPL-2.0 "
    "MS-PL NCSA ODbL-1.0 OSL-3.0 Unlicense WTFPL Zlib"
)
_BY_NAME = {name.lower(): name for name in _SPDX.split()}


def find_root(evidence: Evidence) -> Model:
    """The model whose licence binds the student: its teacher where one taught it."""
    taught = evidence.distilled and evidence.teacher
    return evidence.teacher if taught and evidence.teacher else evidence.student


def is_unknown(licence: str) -> bool:
    """Whether nobody said what the licence is."""
    return licence.strip().lower() in _UNKNOWN


def spdx_id(licence: str) -> str:
    """The SPDX identifier that a licence names; "" where it is another's wording."""
    name = licence.strip().lower().removesuffix("-only").removesuffix("-or-later")
    return _BY_NAME.get(name, "")


def licence_warning(model: Model) -> str:
    """What a licence forbids or leaves open; "" when it does neither."""
    if is_unknown(model.licence):
        return (
            f"The licence of the {model.role}'s weights is unknown. Until you know it, you may not "
            "have the right to use or to pass on these models"
        )
    if _NON_COMMERCIAL.search(model.licence):
        return (
            f"The {model.role}'s weights are under {model.licence}: not for commercial use, and "
            "neither are these models"
        )
    return ""
