"""Registrations of base models by request: checks, hashes and the catalog entry, on a host with torch."""
