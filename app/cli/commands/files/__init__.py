"""`tunery files`: upload, list, validate, convert and download files."""
