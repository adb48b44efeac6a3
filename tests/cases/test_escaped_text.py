"""What comes from outside is shown as text: in terminals, logs, Markdown, HTML, annotations."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_makers import tiny
from markupsafe import Markup
from rich.table import Table
from rich.text import Text
from safetensors.torch import save_file

from mipkd.core.evidence import Gate, Outcome
from mipkd.core.names import printable
from pipeline.cli import main
from pipeline.cli.terminal import print_wide, say, set_logging
from pipeline.report import junit, markdown
from pipeline.report.markup import cell, code
from pipeline.report.write import environment

ESC, OSC, BELL = "\x1b[31m", "\x1b]8;;https://evil\x1b\\", "\x07"
CONTROLS = f"{ESC}{OSC}{BELL}\x9b2J\r\u202e\u2066\u200b\u2028\ufeff"
FORGED = "x\nverify: PASS\n::error::forged"


def is_plain(text: str) -> bool:
    """Whether no character of it but line ends steers a terminal."""
    return printable(text, keep="\n") == text


def test_characters_that_steer_or_hide_are_escaped_and_letters_are_not() -> None:
    assert is_plain(printable(CONTROLS))
    assert "\n" not in printable("a\nb")
    scripts = "naïve 写真 фото می\u200cخواهم 👩\u200d🔬 ÅÄÖ"
    assert printable(scripts) == scripts


@pytest.mark.parametrize("text", [CONTROLS, FORGED])
def test_a_line_is_one_line_and_steers_nothing(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say(text)
    say("::error::forged")
    say("##[error]forged")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(map(is_plain, lines))
    assert not [line for line in lines if line.lstrip().startswith(("::", "##["))]


def test_tables_show_markup_and_controls_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", title=f"[red]{CONTROLS}")
    table.add_row(f"[link=https://evil]{CONTROLS}[/link] :smile:")
    print_wide(table)
    print_wide(Text(CONTROLS))
    said = capsys.readouterr().out
    assert is_plain(said)
    assert "[link=https://evil]" in said
    assert ":smile:" in said


@pytest.mark.parametrize("verbose", [False, True])
def test_messages_in_the_log_are_one_line_without_controls(
    verbose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setenv("COLUMNS", "1000")
    set_logging(verbose)
    log = logging.getLogger("mipkd.test")
    log.warning("read %s", CONTROLS + FORGED)
    try:
        raise ValueError(CONTROLS)
    except ValueError:
        log.warning("failed", exc_info=True)
    assert is_plain(said.getvalue())
    assert "\\nverify: PASS" in said.getvalue()


@pytest.mark.parametrize(
    "text",
    [
        *("<script>alert(1)</script>", "a | b", "![x](https://evil/x.png)", "[x](javascript:1)"),
        *("`code`", "**bold**", "_it_", "~~gone~~", "&lt;b&gt;", "a\n\n# heading", "# heading"),
        *("> quote", "- item", "1. item", "https://evil", "www.evil.example", CONTROLS, "a\\|b"),
    ],
)
def test_markdown_shows_text_as_it_is(text: str) -> None:
    marked = environment(html=False).from_string("{{ text }}").render(text=text)
    assert marked == cell(text)
    assert "\n" not in marked
    assert is_plain(marked)
    shown = html_of(marked)
    for tag in ("<a", "<img", "<code", "<strong", "<em", "<h1", "<li", "<script", "<s>", "<quote"):
        assert tag not in shown
    table = html_of(f"| a | b |\n|---|---|\n| {marked} | c |")
    assert table.count("<td>") == 2


def html_of(text: str) -> str:
    """By a reader of GitHub's Markdown that rich brings along."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def test_a_span_of_code_is_not_left() -> None:
    assert html_of(f"`{code('a`<b>`' + FORGED)}`").count("<code>") == 1


def test_what_a_template_makes_is_escaped_once() -> None:
    made = environment(html=False).from_string(
        "{% macro row(cells) %}| {{ cells | map('cell') | join(' | ') }} |{% endmacro %}"
        "{{ row(['a|b', 'c']) }}{{ '*x*' | cell }}{{ 3 }}"
    )
    assert made.render() == "| a\\|b | c |\\*x\\*3"
    page = environment(html=True).from_string("{{ text }}{{ plot }}")
    found = page.render(text=f"<b>{CONTROLS}\n", plot=Markup("<svg/>"))
    assert is_plain(found)
    assert found.startswith("&lt;b&gt;")
    assert found.endswith("<svg/>")


def test_annotations_and_test_cases_hold_one_message() -> None:
    gate = Gate(
        subject=f"cpu {CONTROLS}",
        name="latency",
        outcome=Outcome.FAIL,
        figure=1.0,
        bound=2.0,
        unit="ms",
        reason=f"50% {FORGED}{CONTROLS} | <b>",
    )
    (line,) = markdown.github_lines([gate])
    assert is_plain(line)
    assert "\n" not in line
    assert "50%25" in line
    table = markdown.table(f"run {FORGED}", Outcome.FAIL, [gate])
    assert is_plain(table)
    assert "<b>" not in table
    assert "\x1b" not in junit.junit("run", "2026-01-01", [gate])


def test_doctor_shows_a_licence_and_a_name_of_a_file_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / f"net{ESC}\nscale: 9.safetensors"
    state = {key: value.contiguous() for key, value in tiny().items()}
    save_file(state, file, {"license": f"MIT{CONTROLS}\nscale: 8"})
    monkeypatch.setattr(sys, "argv", ["mipkd-pipeline", "doctor", str(file)])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    with pytest.raises(SystemExit) as left:
        main()
    said = capsys.readouterr()
    assert left.value.code == 0, said.err
    assert is_plain(said.out + said.err)
    assert not [line for line in said.out.splitlines() if line in ("scale: 8", "scale: 9")]
