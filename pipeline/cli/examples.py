"""What stands below each command's help: names that its options know, and one example."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import typer
from typer.core import TyperCommand

from mipkd.core import plugins
from mipkd.core.precision import PRECISIONS

EXAMPLES = {
    "run": "mipkd-pipeline run --teacher edsr.pth --data photos/ --val Set5/ --target cpu,openvino",
    "plan": "mipkd-pipeline plan --teacher edsr.pth --data photos/ --target openvino",
    "train": "mipkd-pipeline train --arch rcan:c64g4b8 --data photos/ --scale 2",
    "study": "mipkd-pipeline study --teacher edsr.pth --data photos/ --val Set5/,Set14/ "
    "--methods scratch,logits --seeds 3",
    "doctor": "mipkd-pipeline doctor IMDN_x4.pth --images Set5/",
    "schema": "mipkd-pipeline schema",
    "report": "mipkd-pipeline report runs/edsr",
    "history": "mipkd-pipeline history runs",
    "upscale": "mipkd-pipeline upscale runs/edsr/bundle photos/ -o large/ --format webp",
    "verify": "mipkd-pipeline verify runs/edsr/bundle",
    "bench": "mipkd-pipeline bench runs/edsr/bundle --target cpu,openvino",
    "check": "mipkd-pipeline check runs/edsr/bundle --baseline released/",
    "kit": "mipkd-pipeline kit runs/edsr/bundle --target coreml",
    "collect": "mipkd-pipeline collect results.zip runs/edsr",
    "sign": "mipkd-pipeline bundle sign runs/edsr/bundle --key release-key",
}


class _Explained(TyperCommand):
    """A command whose help ends with the names that its options know, and an example."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Names are looked up here: a start without --help does not wait for them."""
        options = {one.name for one in self.params}
        lines = [
            f"Known {what}: {', '.join(list_())}"
            for name, (what, list_) in _KNOWN.items()
            if name in options
        ]
        lines += [f"Example: {EXAMPLES[str(self.name)]}"] if self.name in EXAMPLES else []
        for line in lines:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(line)


# What an option's name takes, and where its names come from.
_KNOWN: dict[str, tuple[str, Callable[[], Iterable[str]]]] = {
    "target": ("targets", lambda: plugins.names("targets")),
    "student": ("families", lambda: plugins.names("mipkd.archs")),
    "arch": ("families", lambda: plugins.names("mipkd.archs")),
    "precision": ("precisions", lambda: PRECISIONS),
}


def add_examples(app: typer.Typer) -> None:
    """Let each command's help end with known names and its example."""
    commands = [*app.registered_commands]
    for group in app.registered_groups:
        if group.typer_instance is not None:
            commands += group.typer_instance.registered_commands
    for command in commands:
        command.cls = _Explained
