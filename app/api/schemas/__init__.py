"""Bodies as clients see them. Rows become bodies here, each in one named function."""
