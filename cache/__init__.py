"""Storage that outlives a tick: the ring of slots. Knows tensors and integers; never frames, prompts or HTTP."""
