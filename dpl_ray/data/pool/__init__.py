"""The unlabelled images: the windows they are read in, the choice of memory or stream, pools shaped for benchmarks.

May import: config, data.images, data.files, data.formats, data.labeled.
"""
