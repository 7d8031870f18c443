"""The command line, `tunery`: a client of the HTTP API, and the commands that run the service on one machine."""
