"""Use cases of operators: readiness, status, backups, retention rules, secrets, facts before an upgrade."""
