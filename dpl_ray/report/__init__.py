"""What is shown of a run: its page, the verdict, and why an image got its weight."""
