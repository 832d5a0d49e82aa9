"""Model files: the hub, folder layouts, weights, checkpoints, LoRA files, memory and precision."""
