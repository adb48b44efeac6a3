"""`bundle sign`, and what `verify` says of a signature."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mipkd.core.errors import UsageError
from mipkd.core.evidence import Outcome
from mipkd.core.names import printable
from pipeline.cli.terminal import EXIT, Verbose, set_logging

group = typer.Typer(help="Work on a bundle itself.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the group to the command line."""
    app.add_typer(group, name="bundle")


@group.command()
def sign(
    bundle: Annotated[Path, typer.Argument(help="Folder bundle/ of a finished run.")],
    key: Annotated[
        Path, typer.Option(help="OpenSSH key; a public one where an agent holds its other half.")
    ],
    verbose: Verbose = False,
) -> None:
    """Sign a bundle's manifest, and so the hash of each of its files, with ssh-keygen."""
    set_logging(verbose)
    from pipeline.bundle import signature

    made = signature.sign(bundle, key.expanduser())
    typer.echo(f"signed: {printable(made)}, namespace {signature.NAMESPACE}")


def tell_signature(bundle: Path, signer: str | None, allowed_signers: Path | None) -> str:
    """A line on a bundle's signature; no program is started where no signer was asked for.

    Raises:
        Exit: a signer was asked for, and this is not their signature.
        UsageError: signers were named and none was asked for, or as of `verify_signature`.
    """
    from pipeline.bundle import signature

    if signer is None and allowed_signers:
        raise UsageError("--allowed-signers: no --signer", hint="say who must have signed")
    if signer is None:
        signed = signature.signature_of(bundle).is_file()
        how = "signed, not checked: --signer WHO --allowed-signers FILE"
        return f"signature: {how if signed else 'not signed'}"
    known = allowed_signers or Path("~/.ssh/allowed_signers")
    found = signature.verify_signature(bundle, signer, known.expanduser())
    if not found.good:
        typer.echo(f"signature: FAIL: {found.what}")
        typer.echo("verify: FAIL")
        raise typer.Exit(EXIT[Outcome.FAIL])
    return f"signature: good, {found.what}"
