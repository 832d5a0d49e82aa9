"""Where finished frames go besides the clients: recordings, streaming services, a virtual camera."""
