"""What the commands print: console, tables, progress, next steps."""
