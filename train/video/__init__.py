"""How mini-video, the bundled small causal video model, was made; see docs/mini-video.md."""
