"""Comparing policies over seeds."""
