"""The KV cache of causal transformers, and the policies that decide what it keeps."""
