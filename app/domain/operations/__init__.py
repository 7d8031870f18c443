"""Rules of operation: status, backups, retention, upgrades."""
