"""The user's files: where they are, what they may be, and where paths in data may lead.

May import: config, store, data.images.
"""
