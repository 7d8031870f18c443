"""Rules of jobs: request parameters, resolved spec, states, events, snapshots, clones and diffs."""
