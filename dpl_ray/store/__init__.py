"""Bytes, wherever they are: files, folders and buckets, locks, records of JSON lines.

May import: nothing of the package.
"""
