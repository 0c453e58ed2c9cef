"""The command line: `main` has the table of commands, `flags` the flags made from the configuration's dataclasses."""
