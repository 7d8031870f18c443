"""HTTP mechanics without a subject: bodies, byte ranges, ETags, multipart, pages, disconnects, uploads."""
