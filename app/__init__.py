"""The doors: command line, page, media in and out, sessions, and the client of the worker process."""
