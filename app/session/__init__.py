"""One user's session as every door sees it, the table of all sessions, and the feed of finished frames."""
