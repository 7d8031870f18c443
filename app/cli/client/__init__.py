"""HTTP client of the commands: service discovery, uploads, downloads, request bodies."""
