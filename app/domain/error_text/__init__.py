"""Errors of JSON requests in plain words: pydantic's findings, JSON syntax, JSON types."""
