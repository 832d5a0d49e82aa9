"""TensorRT and TensorRT-RTX: export, build, key, store, run. Empty until the TensorRT backend lands."""
