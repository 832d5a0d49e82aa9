"""One script per figure that the README quotes; each prints one JSON line with --json."""
