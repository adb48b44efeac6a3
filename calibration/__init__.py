"""Quantisation: calibration patches, sensitive layers, and the search for what stays float."""
