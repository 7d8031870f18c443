"""The commands of `tunery`, one module per group of commands."""
