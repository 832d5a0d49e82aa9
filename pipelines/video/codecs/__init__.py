"""Video autoencoders that code a stream chunk by chunk."""
