"""The frame-stream API: HTTP, WebSocket and WebRTC doors onto the session table."""
