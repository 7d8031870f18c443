"""Screens of fine-tuning jobs: the list, one job, a new job, the comparison of jobs."""
