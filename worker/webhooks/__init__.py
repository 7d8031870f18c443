"""Webhook sender: claims due deliveries and posts them. `python -m worker.webhooks`."""
