"""What a trained model says of images, and the model in the formats of MLflow and ONNX.

May import: store, config, algorithm, models, tracking, data, training, runs, torch, mlflow.
"""
