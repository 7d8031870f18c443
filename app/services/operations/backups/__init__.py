"""Use cases of backups: create, restore, and the check of every row against its bytes."""
