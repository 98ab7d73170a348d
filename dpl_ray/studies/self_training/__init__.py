"""Rounds of training and labelling."""
