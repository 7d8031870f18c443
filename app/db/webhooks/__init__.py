"""Queries for webhook endpoints and deliveries."""
