"""What only TensorRT and its kin need."""
