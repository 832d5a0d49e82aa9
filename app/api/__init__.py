"""The frame-stream API: access to the session table over HTTP, WebSocket and WebRTC."""
