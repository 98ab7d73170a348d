"""The user's labelled images and tables, and the classes of their labels.

May import: config, store, data.images, data.files, data.formats.
"""
