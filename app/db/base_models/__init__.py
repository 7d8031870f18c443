"""Queries of API and worker for base models and `ft:` models."""
