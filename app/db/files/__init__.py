"""Queries for files and multipart uploads."""
