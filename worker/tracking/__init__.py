"""The metrics of a job for experiment trackers, from the worker: a child program for each, and the queue before it."""
