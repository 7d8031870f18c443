"""The dashboard, `python -m app.web`: screens for people, a client of the public API and nothing else."""
