"""Reuse across the frames of an image stream: what moved is recomputed, the rest is held."""
