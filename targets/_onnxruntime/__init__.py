"""Parts that only ONNX Runtime needs."""
