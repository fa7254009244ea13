"""Speed and size against the published procedure, and how they grow: `python -m benchmarks`, `python -m benchmarks scaling`."""
