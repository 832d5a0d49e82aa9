"""The application: command line, page, API, media input and output, sessions, and the worker process."""
