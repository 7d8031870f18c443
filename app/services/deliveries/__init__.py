"""Use cases of delivery targets and deliveries."""
