"""The command line: one file for each sub-command, and the options they share."""
