"""Objectives: losses of tokens and of sequences, their metrics, the optimizer."""
