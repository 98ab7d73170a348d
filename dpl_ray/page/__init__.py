"""What is shown: HTML, figures, the console. It knows no job.

May import: store.
"""
