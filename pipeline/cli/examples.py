"""One example for each command, below its help."""

from __future__ import annotations

import typer

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


def add_examples(app: typer.Typer) -> None:
    """Show each command's example, where it has one, at the end of its help."""
    commands = [*app.registered_commands]
    for group in app.registered_groups:
        if group.typer_instance is not None:
            commands += group.typer_instance.registered_commands
    for command in commands:
        name = command.name or getattr(command.callback, "__name__", "")
        if name in EXAMPLES:
            command.epilog = f"Example: {EXAMPLES[name]}"
