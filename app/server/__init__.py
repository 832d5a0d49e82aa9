"""The front process behind one port: the assembled application, its gate, TLS and warm-up."""
