"""The workflow: its configuration, its rules and the command that runs it whole."""
