"""What earlier versions wrote, and the weights that they came to: `python -m tests.recorded.digests` writes the latter."""
