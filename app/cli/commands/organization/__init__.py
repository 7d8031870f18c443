"""`tunery projects`, `tunery keys` and `tunery audit`: the organization of the users of this service."""
