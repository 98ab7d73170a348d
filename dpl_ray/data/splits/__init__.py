"""From the configuration or arrays to the splits of a run: labelled, unlabelled, validation and test.

May import: config, store, data.images, data.files, data.formats, data.labeled, data.pool, data.features, torch.
"""
