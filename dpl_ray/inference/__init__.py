"""What a trained model says of images, and the model in MLflow's format.

May import: store, config, algorithm, models, tracking, data, training, runs, torch, mlflow.
"""
