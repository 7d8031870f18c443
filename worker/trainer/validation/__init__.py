"""Evaluation during training: validation loss, sample answers, early stopping."""
