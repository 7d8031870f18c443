"""Rules of files and multipart uploads."""
