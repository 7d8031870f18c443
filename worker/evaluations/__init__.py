"""Evaluations: a child process generates answers, and another one grades them."""
