"""HTTP handlers for administrators: projects, their keys, their jobs, the audit log."""
