"""From a folder to a trained model: what lies where in it, and the settings that fit a budget of time.

May import: store, config, models, page, data, training, runs, inference, report, checking, embedding, jobs, torch.
"""
