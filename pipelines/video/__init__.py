"""The causal video engine: chunks of latent frames, generated one after the other over a rolling cache of the past."""
