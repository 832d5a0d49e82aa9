"""The command line: one file per subcommand, and the options they share."""
