"""What a model would take and how fast it would run, before it is loaded."""
