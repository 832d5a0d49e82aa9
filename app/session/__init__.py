"""One user's session as every client sees it, the table of all sessions, and the feed of finished frames."""
