"""What the commands use to talk to the API: HTTP client, service discovery, uploads, request bodies."""
