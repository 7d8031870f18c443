"""Queries for operators: status, retention rules, dumps, encrypted columns, facts before an upgrade."""
