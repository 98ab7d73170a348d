"""Encoded images to uint8 arrays of one kind, one or many of them.

May import: config.
"""
