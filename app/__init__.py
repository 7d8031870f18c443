"""The service: HTTP API, command line, database, storage, and the rules that API and worker share."""
