"""MLflow: what is recorded of a run, off the training path, and sent later where a server was down.

May import: store, config, page, mlflow.
"""
