"""The command line; `main` is the console script."""

from pipeline.cli.app import app, main

__all__ = ["app", "main"]
