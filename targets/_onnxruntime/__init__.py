"""What only ONNX Runtime needs."""
