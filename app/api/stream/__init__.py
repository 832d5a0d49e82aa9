"""A session's frames over WebSocket and Motion JPEG: messages, wire format, inputs and answers."""
