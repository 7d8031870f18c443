"""Queries for delivery targets and deliveries, and the encryption of credentials."""
