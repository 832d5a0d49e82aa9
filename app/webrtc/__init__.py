"""The media layer of WebRTC: codecs, jitter buffer, session descriptions and tracks. No route and no session table."""
