"""Searching for the best values of fields."""
