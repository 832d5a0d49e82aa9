"""The causal video engine: generates one chunk of latent frames after another over a rolling cache of the past."""
