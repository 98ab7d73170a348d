"""Labelling a pool of files with a trained model."""
