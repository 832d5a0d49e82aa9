"""Takes: what a session did, written as it happens, and played again."""
