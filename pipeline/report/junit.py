"""`junit.xml`: the gates as test cases, for CI systems that show them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence

from mipkd.core.evidence import Gate

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(name: str, created: str, gates: Sequence[Gate]) -> str:
    """One test case a gate: FAIL is a failure, INVALID an error."""
    suite = ET.Element(
        "testsuite",
        name=_clean(name),
        tests=str(len(gates)),
        failures=str(sum(gate.outcome == "FAIL" for gate in gates)),
        errors=str(sum(gate.outcome == "INVALID" for gate in gates)),
        timestamp=created,
    )
    for gate in gates:
        case = ET.SubElement(
            suite, "testcase", classname=_clean(gate.subject), name=_clean(gate.name)
        )
        if gate.outcome != "PASS":
            kind = "failure" if gate.outcome == "FAIL" else "error"
            said = ET.SubElement(case, kind, message=_clean(gate.reason))
            said.text = f"figure {gate.figure}, bound {gate.bound} {gate.unit}".strip()
    suites = ET.Element("testsuites")
    suites.append(suite)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _clean(text: str) -> str:
    """Without the control characters that XML cannot hold, such as colours of a terminal."""
    return _NOT_XML.sub("", text)
