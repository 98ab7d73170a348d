"""Comparing policies over labelled subsets and seeds."""
