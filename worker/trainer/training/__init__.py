"""The training of one run: from spec to exit code, the loop, its state, and the actions between steps."""
