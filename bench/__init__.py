"""One script per figure quoted in the README; each prints one JSON line with --json."""
