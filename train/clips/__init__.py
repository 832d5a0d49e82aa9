"""The procedural world in motion: clips of scenes in which the subject or the camera moves and follows actions."""
