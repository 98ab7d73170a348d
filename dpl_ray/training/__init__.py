"""One step, the loop around it, and what it needs to stop and go on."""
