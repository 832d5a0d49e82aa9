"""Feature caches: reuse of what networks computed, across frames and across steps."""
