"""Speed and size against the published procedure (`python -m benchmarks`), and how they grow (`... scaling`)."""
