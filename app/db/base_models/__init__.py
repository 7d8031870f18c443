"""Queries for base models, their aliases and registrations, and `ft:` models."""
