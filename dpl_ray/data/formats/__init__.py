"""Rows of parquet files, Lance data sets, tars and image files, by their places or their ids.

May import: config, store, data.images, data.files.
"""
