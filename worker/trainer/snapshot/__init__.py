"""Private snapshots, from which a later attempt resumes exactly."""
