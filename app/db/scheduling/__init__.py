"""Queries for the fair queue, queue positions, workers, and the measurements from which jobs are planned."""
