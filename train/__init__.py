"""How the bundled models were trained, end to end, on data from packages and on rendered scenes."""
