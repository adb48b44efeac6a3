"""Measure latency and pixels; knows neither models nor runtimes."""
