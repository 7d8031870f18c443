"""Delivery targets with their queries, and use cases of deliveries."""
