"""Words that every room shares: errors, records, images, metrics and plug-in discovery."""

import os
import sys

# Runtimes tell their makers over the network what runs on them, unless they are told not to. Ours
# is other people's models on other people's machines: nothing is told. Before any is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("NNCF_CI", "1")
# Threads that wait for each other give their core away: beside other programs, spinning ones keep
# it from the thread that they wait for. Read when torch loads its OpenMP, GNU's or LLVM's.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("KMP_BLOCKTIME", "0")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # not importable
