"""Where finished frames go besides the doors: recordings, streaming services, a virtual camera."""
