"""How a denoiser is executed: eager or in a CUDA graph."""
