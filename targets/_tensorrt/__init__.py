"""Parts that only TensorRT and its kin need."""
