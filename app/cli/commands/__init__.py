"""The commands of `tunery`, one module per subject."""
