"""Registrations of base models that a request asked for: checks, hashes and the catalog entry, on a host with torch."""
