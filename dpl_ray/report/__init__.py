"""What is shown of a finished run: its page, the verdict and the figures.

May import: store, config, page, tracking, data, training, runs, inference, torch.
"""
