"""The interactive page at /docs: one HTML template, its style and its script, nothing from the network."""
