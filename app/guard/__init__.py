"""Access control: tokens, hosts, origins, body sizes and rates. Pure ASGI, independent of routes and sessions."""
