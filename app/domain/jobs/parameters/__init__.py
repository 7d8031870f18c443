"""Request parameters of a job: one definition each, with its aliases, bounds, description, example and "auto"."""
