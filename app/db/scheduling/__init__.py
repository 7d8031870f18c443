"""Queries for the fair queue, queue positions and workers."""
