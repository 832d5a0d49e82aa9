"""The worker process and the front's side of it: messages, shared memory, the engine loop, handles and proxies."""
