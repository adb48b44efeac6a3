"""From a torch net to an ONNX graph, with a check that both give the same images."""
