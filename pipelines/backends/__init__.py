"""What makes the parts that an engine calls out of loaded networks: one table, and the executor of CUDA graphs."""
