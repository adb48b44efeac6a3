"""Rewriting of ONNX graphs, for the runtimes that take ONNX."""
