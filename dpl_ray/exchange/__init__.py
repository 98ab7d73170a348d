"""Labels of a pool written for annotation tools, and what people have annotated there read back.

May import: store, config, page, data, reviewing.
"""
