"""Use cases, each with its transactions: between the HTTP handlers and the database."""
