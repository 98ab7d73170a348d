"""From files and arrays to batches of views."""
