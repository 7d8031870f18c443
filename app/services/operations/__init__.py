"""Operators: readiness, status, backups, retention rules, encrypted columns, facts before an upgrade."""
