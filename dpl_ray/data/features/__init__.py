"""Folders of features that `dpl-ray embed` writes: what describes them, their rows, the images they were made of.

May import: config, store, data.images, data.files, data.formats, data.pool.
"""
