"""Error messages for JSON requests: validation errors, JSON syntax errors, values as they appear in messages."""
