"""Use cases of jobs: create, plan, control, clone, diff, export, records, event streams."""
