"""The commands, `dpl-ray train` and others: what each takes, which job it starts, and how its end is shown.

May import: config, page, checking, tracking, inference, labeling, reviewing, exchange, embedding, jobs, quickstart,
studies.
"""
