"""What the command line says of itself: version, completion, examples, the settings' schema."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import tomllib
from typer.main import get_command
from typer.testing import CliRunner

from mipkd.core.texts import say_duration
from pipeline import cli, doctor
from pipeline.cli.examples import EXAMPLES
from pipeline.config_schema import config_schema

ROOT = Path(__file__).parents[2]
COMMANDS: Any = get_command(cli.app)


def said(*words: str, **environment: str) -> str:
    result = CliRunner().invoke(cli.app, list(words), env=environment, prog_name="mipkd-pipeline")
    assert result.exit_code == 0, result.stderr
    return result.stdout


def find(words: list[str]) -> tuple[Any, list[str]]:
    """The command that words name, and what is left of them."""
    command = COMMANDS
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    return command, words


def leaves(command: Any) -> list[str]:
    inner = getattr(command, "commands", {})
    return [name for one in inner.values() for name in leaves(one)] or [command.name]


def test_the_version_is_the_packages() -> None:
    assert said("--version").startswith(f"mipkd-pipeline {version('mipkd-pipeline')}")


def test_a_shell_completes_commands() -> None:
    asked = {"COMP_WORDS": "mipkd-pipeline ver", "COMP_CWORD": "1"}
    found = said(**asked, _MIPKD_PIPELINE_COMPLETE="complete_bash")
    assert found.split() == ["verify"]


def test_each_command_has_an_example() -> None:
    assert {*leaves(COMMANDS)} == {*EXAMPLES}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_command_that_can_be_typed(name: str) -> None:
    program, *words = shlex.split(EXAMPLES[name])
    assert program == "mipkd-pipeline"
    command, options = find(words)
    assert command.name == name
    context = command.context_class(command, info_name=name)
    values, left, _ = command.make_parser(context).parse_args(options)
    wanted = [one.name for one in command.params if one.required]
    assert not left
    assert {*wanted} <= {*values}
    shown = said(*words[: len(words) - len(options)], "--help", TERMINAL_WIDTH="200", COLUMNS="200")
    assert EXAMPLES[name] in " ".join(shown.split())


def test_help_lists_the_names_that_an_option_knows() -> None:
    shown = " ".join(said("run", "--help").split())
    assert "Known targets: coreml, cpu, jetson, litert, ncnn, null, openvino" in shown
    assert "Known families: compact, edge, edsr, imdn, lkdn, rcan, rlfn, span, swinir" in shown
    assert "Known precisions: fp32, " in shown
    assert "Known" not in said("verify", "--help")


def test_the_settings_schema_is_the_one_in_the_docs() -> None:
    hint = "run: mipkd-pipeline schema > docs/config.schema.json"
    assert (ROOT / "docs" / "config.schema.json").read_text() == config_schema(), hint
    assert said("schema") == config_schema()


def test_the_settings_schema_takes_the_presets_and_no_unknown_name() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(config_schema())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    presets = sorted((ROOT / "pipeline" / "presets").glob("*.toml"))
    assert presets
    for preset in presets:
        assert not list(validator.iter_errors(tomllib.loads(preset.read_text())))
    for wrong in ({"distil": {}}, {"distill": {"steps": 0}}, {"bench": {"warmup": 1}}):
        assert list(validator.iter_errors(wrong)), wrong
    properties = schema["$defs"]["QatConfig"]["properties"]
    assert properties["patch"] == schema["$defs"]["DistillConfig"]["properties"]["patch"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5200, "87 min"), (5400, "1 h 30 min")),
        *((3 * 3600 + 290, "3 h 05 min"), (7199, "2 h 00 min"), (50 * 3600, "2 d 2 h")),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert say_duration(seconds) == words


def test_gmacs_are_told_with_their_size() -> None:
    teacher = Path(str(files("pipeline"))) / "presets" / "teacher_x2.safetensors"
    found = doctor.examine_checkpoint(teacher, None, ())
    assert f"gmacs: {found['gmacs']} at LR 256x256" in doctor.describe(found)
