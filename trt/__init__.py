"""Plans: the store of what any recipe compiled; export, build and run with TensorRT and TensorRT-RTX."""
