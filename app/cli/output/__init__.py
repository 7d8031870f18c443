"""Output of the commands: console, tables, progress, next steps, comparison of answers."""
