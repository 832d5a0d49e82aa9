"""When a cached feature is used instead of a computed one, and how it is brought up to date: one file per method."""
