"""Self-attention to a window of keys, with the softmax's denominator restored from an earlier frame (Re-ttention)."""
