"""Rules of evaluations: rows, graders, templates, states, and whether the adapter may be delivered."""
