"""The step-batched image engine: slots in a ring, advanced together by each tick."""
