"""Administration by commands, over HTTP with an admin key or on the database of the server."""
