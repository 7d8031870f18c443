"""Plans: packing, memory, duration, and what a job requires of a worker."""
