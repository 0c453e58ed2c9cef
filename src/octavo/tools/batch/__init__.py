"""Many requests from a file of JSON lines, and a file of results that survives a kill."""
