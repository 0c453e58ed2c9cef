"""The live page: snapshots of the engine, their feed, and the page that shows it."""
