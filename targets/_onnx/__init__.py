"""ONNX graphs, rewritten for the runtimes that take them."""
