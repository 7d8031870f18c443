"""Response bodies, and the functions that make them from rows; request bodies."""
