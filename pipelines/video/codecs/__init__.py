"""Video autoencoders that encode and decode a stream chunk by chunk."""
