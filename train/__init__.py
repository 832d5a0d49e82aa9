"""How the bundled models were made, end to end, from data that packages provide and scenes it renders itself."""
