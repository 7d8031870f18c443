"""Evaluations: a child process generates answers, and graders compare them."""
