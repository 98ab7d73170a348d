"""Every field with its default, bounds and meaning; from conf/ and the command line to a checked Config.

May import: store.
"""
