"""Storage that outlives a tick: the ring and the KV cache. Depends on tensors and integers only."""
