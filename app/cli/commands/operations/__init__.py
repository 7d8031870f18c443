"""Commands for operators: status, backup and restore, retention rules, storage, secrets."""
