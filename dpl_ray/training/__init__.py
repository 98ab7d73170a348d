"""One step, the loop around it, evaluation, and what a run needs to stop and go on.

May import: store, config, algorithm, models, data, torch.
"""
