"""What an earlier version wrote, and the weights it came to (`python -m tests.recorded.digests` writes those)."""
