"""The step-batched image engine: slots in a ring, one tick for all of them."""
