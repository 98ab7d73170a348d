"""Images of a labelled pool that a person looks at: the page for it, which images, and what the answers say.

May import: store, config, page, data, training, runs, inference, labeling.
"""
