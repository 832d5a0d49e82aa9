"""Takes: what a session did, recorded live and replayed later."""
