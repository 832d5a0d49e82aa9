"""The causal Wan transformer: blocks, attention kernels, text and actions."""
