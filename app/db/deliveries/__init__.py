"""Queries for deliveries, and the encryption of credentials."""
