"""TensorRT plans at a boot: which may run here, and how one is built and kept."""
