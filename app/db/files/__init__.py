"""Queries for files, and the cleanup of uploads."""
