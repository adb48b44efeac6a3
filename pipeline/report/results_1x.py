"""`results.json` of the versions 1.0 to 1.6 as JSON of today's evidence.

It held no paths within the run: they are empty, so that windows of images and curves are missing.
"""

from __future__ import annotations

from typing import Any

Stated = dict[str, Any]


def as_evidence(old: Stated) -> Stated:
    """What the same run would have written as evidence."""
    student = _model(old["student"], "student")
    scale, host = student["scale"], old["host"]
    measurements = [_measurement(m, host) for m in old["measurements"]]
    verdict = old["verdict"]
    return {
        **old["run"],
        "verdict": {**verdict, "gates": [_gate(gate) for gate in verdict["gates"]]},
        "teacher": _model(old["teacher"], "teacher") if old["teacher"] else None,
        "student": student,
        "distilled": _read_distilled(old["training"], student),
        "graph": {**old["graph"], "file": "", "role": "student", "scale": scale}
        | {"family": student["arch"], "licence": student["licence"]},
        "tests": _tests(old["tests"], scale, measurements),
        "photos": {**old["photos"], "folder": "", "scale": scale} if old["photos"] else None,
        "calibration": _patches(old["calibration"]) if old["calibration"] else None,
        "host": host,
        "measurements": measurements,
        "failures": old["failures"],
        "not_measured": old["not_measured"],
        "warnings": old["warnings"],
        "plans": [_plan(plan) for plan in old.get("plans", ())],
        "rivals": [_rival(rival) for rival in old.get("rivals", ())],
    }


def _measurement(m: Stated, host: Stated) -> Stated:
    measured = m["kind"] != "reference"
    return {
        **m,
        "size_bytes": m["size_bytes"] or 0,
        "latencies": [_latency(one) for one in m["latencies"]],
        "images": m["quality"]["images"] if m["quality"] else [],
        "simulated": m["kind"] == "simulated",
        "host": m.get("host") or (host if measured else None),
    }


def _latency(one: Stated) -> Stated:
    end_to_end_ms, load_ms, memory_mb = (
        one.get(name) for name in ("end_to_end_ms", "load_ms", "memory_mb")
    )
    return {
        **one,
        "size": [one["height"], one["width"]],
        "warmup": one["warmups"],
        "cold_start_s": (one["cold_start_ms"] or 0.0) / 1e3,
        "end_to_end_s": end_to_end_ms / 1e3 if end_to_end_ms is not None else None,
        "load_s": load_ms / 1e3 if load_ms is not None else None,
        "memory_bytes": round(memory_mb * 1e6) if memory_mb is not None else None,
    }


def _gate(gate: Stated) -> Stated:
    return {**gate, "bound": gate["bound"] or 0.0}


def _model(model: Stated, role: str) -> Stated:
    known = {"params": model["params"] or 0, "gmacs": model["gmacs"]}
    return {**model, **known, "role": role, "file": ""}


def _read_distilled(training: Stated | None, model: Stated) -> Stated | None:
    return {**training, "model": model, "curves": "", "pictures": []} if training else None


def _tests(tests: Stated, scale: int, measurements: list[Stated]) -> Stated:
    images: list[Stated] = next((m["images"] for m in measurements if m["images"]), [])
    lr_from = "published" if tests["detail"] == "LR as published" else "bicubic"
    names = [image["image"] for image in images]
    return {**tests, "folder": "", "scale": scale, "images": names, "lr_from": lr_from}


def _patches(patches: Stated) -> Stated:
    """Its size stood in words: "LR patches of 64×48", width by height."""
    width, _, height = patches["detail"].rpartition(" ")[2].partition("×")
    return {**patches, "file": "", "size": [int(height), int(width)]}


def _plan(plan: Stated) -> Stated:
    return {**plan, "size": [plan["height"], plan["width"]], "holdout": _holdout(plan)}


def _holdout(plan: Stated) -> Stated | None:
    if not plan["holdout_sha256"]:
        return None
    facts = {name: plan[f"holdout_{name}"] for name in ("photos", "pages", "sha256")}
    return {**facts, "lr": "", "hr": "", "source": "", "size": [0, 0], "scale": 0}


def _rival(rival: Stated) -> Stated:
    model = _model(rival["model"], rival["name"]) if rival["model"] else None
    distilled = _read_distilled(rival["training"], model) if model else None
    plans = [_plan(plan) for plan in rival["plans"]]
    return {"name": rival["name"], "model": model, "distilled": distilled, "plans": plans}
