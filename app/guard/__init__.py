"""Who may use the server: tokens, hosts, origins, body sizes and rates. Pure ASGI; no route and no session."""
