"""The unlabelled images: their files and rows, the windows they are read in, and the choice of memory or stream."""
