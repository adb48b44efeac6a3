"""Errors that a user can act on, each with its exit code.

MipkdError
  x UsageError         2  the command line, the configuration or an input file is wrong
  x UnsupportedError   3  a checkpoint, architecture or operator that we do not know
  x MissingError       4  this machine or device lacks something
  x StageError         5  a stage started and could not finish
      NotFiniteError      a model gave values that are no numbers, or infinite
"""

import difflib
from collections.abc import Iterable


class MipkdError(Exception):
    """An expected failure: `what` says where and with which value, `hint` the next step."""

    exit_code = 5

    def __init__(self, what: str, *, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


class UsageError(MipkdError):
    """The command line, the configuration or an input file is wrong."""

    exit_code = 2


class UnsupportedError(MipkdError):
    """A checkpoint, architecture or operator that is not known."""

    exit_code = 3


class MissingError(MipkdError):
    """This machine or device lacks something: a package, a runtime, a chip."""

    exit_code = 4


class StageError(MipkdError):
    """A stage started and could not finish."""

    exit_code = 5


class NotFiniteError(StageError):
    """A model gave values that are no numbers, or infinite: as an image they would be black."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that names the known words, the most similar to `word` first."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    listed = "known: " + ", ".join(names)
    return f"did you mean {close[0]}? {listed}" if close else listed
