"""The command line: one file a command, no logic. What is heavy is imported when a command runs."""
