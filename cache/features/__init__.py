"""Feature caches: reuse of what networks compute, across frames and across steps."""
