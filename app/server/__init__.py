"""The front process on one port: the assembled application, route filter, TLS, log filter and warm-up."""
