"""Queries for operators: status, retention rules, dumps."""
