"""Limiters of the API: concurrent checks, database connections, fair shares of the keys."""
