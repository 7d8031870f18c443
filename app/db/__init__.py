"""PostgreSQL: engine, migrations, identifiers, notifications, and queries by subject."""
