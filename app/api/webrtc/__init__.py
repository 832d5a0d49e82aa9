"""WebRTC peers of sessions: WHIP and WHEP routes, connections and the control channel."""
