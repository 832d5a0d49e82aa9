"""From a name to a causal video model: find, recognise, check, load."""
