"""Octavo beside other engines: `python -m benchmarks.peers`; README.md tells how each is set up."""
