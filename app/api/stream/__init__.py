"""A session's frames over WebSocket and Motion JPEG: messages, wire format, input pictures and output frames."""
