"""Models: base models with their aliases and registrations, and `ft:` models."""
