"""What a trained model says of images, and the model in MLflow's format.

May import: store, config, algorithm, models, training, runs, tracking, torch, mlflow.
"""
