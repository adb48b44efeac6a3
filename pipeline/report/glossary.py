"""The words of the pages: what gates are called there, and what the field's terms mean.

In `results.json`, `junit.xml` and `--github` gates keep their names: programs look for them.
"""

from __future__ import annotations

import re
from typing import Literal

from markupsafe import Markup, escape

from mipkd.core.images import ASSUMED_TRUTH_DB

Question = Literal["good", "fast", "int8", "where"]

QUESTIONS: dict[Question, str] = {
    "good": "Is it good enough?",
    "fast": "Is it fast enough?",
    "int8": "What did INT8 cost?",
    "where": "What ran where?",
}

# Start of a gate's name: what pages call it, and the question that it answers. What follows the
# start, such as " at 320x180", is kept.
_GATES: dict[str, tuple[str, Question]] = {
    "loss to the teacher": ("quality lost to the teacher", "good"),
    "gain over bicubic": ("better than bicubic", "good"),
    "gain retained": ("advantage kept in INT8", "good"),
    "speed-up over teacher": ("faster than the teacher", "fast"),
    "latency": ("latency", "fast"),
    "frames per second": ("frames per second", "fast"),
    "size of the model": ("size of the model", "fast"),
    "memory": ("memory", "fast"),
    "mean drop": ("quality lost, mean", "int8"),
    "worst drop": ("quality lost, worst image", "int8"),
    "channel shift": ("colour shift", "int8"),
    "holdout drop": ("quality lost on other photos, mean", "int8"),
    "holdout worst drop": ("quality lost on other photos, worst crop", "int8"),
    "measured": ("measurement", "where"),
    "operators": ("operators known to", "where"),
}

_WORDS: dict[str, str] = {
    "PSNR-Y": "How near an image is to the truth, or to what stands for it, on its brightness, in "
    "dB. Higher is better; few people see a difference of 0.1 dB.",
    "SSIM-Y": "How alike the structures of an image and of the truth, or of what stands for it, "
    "are, from 0 to 1. Higher is better.",
    "teacher's image": "What the teacher makes of a frame without truth: it stands for it.",
    "student's own image": "What the student makes, in FP32, of a frame without truth where no "
    "teacher was given: it tells what other precisions lose, and nothing else.",
    "p50": "The median: half of the calls are faster.",
    "p90": "Nine of ten calls are faster.",
    "p99": "Ninety-nine of a hundred calls are faster.",
    "INT8": "Numbers of 8 bits in place of 32: smaller and, where the chip has instructions for "
    "it, faster. Rounding costs some quality.",
    "FP32": "Numbers of 32 bits, as in training: the reference for quality.",
    "bicubic": "Plain interpolation without a network: what any network must beat.",
    "teacher": "The large network that the student learned from.",
    "student": "The small network that is to be shipped.",
    "lost": "PSNR-Y of the same network in FP32 less the PSNR-Y here, image by image; without a "
    f"truth as one {ASSUMED_TRUTH_DB:g} dB from what stands for it would show it.",
    "gate": "A figure, and the bound that it must keep.",
    "simulated": "The same graph and weights, run by another engine on this machine: it tells the "
    "pixels, never a time.",
    "emulated": "The runtime itself ran, on a processor that a program imitates: it tells the "
    "pixels, never a time.",
    "95 % interval": "Where the true figure lies in 95 of 100 such measurements.",
    "LR": "Low resolution: the image that goes in.",
    "Bytes to bytes": "Median time with the conversions from and to 8-bit pixels.",
    "Cold": "The very first call at this size.",
    "left float": "Operations that the INT8 model computes without rounding, since rounding them "
    "would cost too much quality.",
}
_TERM = re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, _WORDS)) + r")(?![\w-])")


def title_of(name: str) -> str:
    """What pages call a gate; its own name where they have no other."""
    start = _start_of(name)
    rest = name[len(start) :].replace(" of ", ", by ")  # a metric
    return _GATES[start][0] + rest if start else name


def question_of(name: str) -> Question:
    """The question that a gate answers; whether it is good enough where nobody says."""
    start = _start_of(name)
    return _GATES[start][1] if start else "good"


def _start_of(name: str) -> str:
    """The known start of a gate's name, whole words; "" for none."""
    return next((start for start in _GATES if f"{name} ".startswith(f"{start} ")), "")


def explain(text: str) -> Markup:
    """Text for HTML in which each term, where it first stands, leads to its meaning.

    The meaning is shown beside the pointer and on focus, and stands in the glossary of the page.
    """
    met: set[str] = set()
    parts = _TERM.split(str(text))  # every second one is a term
    for index in range(1, len(parts), 2):
        term = parts[index]
        parts[index] = escape(term) if term in met else _link(term)
        met.add(term)
    return Markup("").join(parts)


def list_words() -> list[tuple[str, str, str]]:
    """Anchor, term and meaning of each word."""
    return [(_anchor(term), term, meaning) for term, meaning in _WORDS.items()]


def _link(term: str) -> Markup:
    anchor = _anchor(term)
    return Markup('<a class="term" href="#{}" aria-describedby="{}" data-tip="{}">{}</a>').format(
        anchor, anchor, _WORDS[term], term
    )


def _anchor(term: str) -> str:
    return "word-" + re.sub(r"\W+", "-", term.lower()).strip("-")
