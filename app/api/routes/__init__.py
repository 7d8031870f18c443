"""HTTP handlers, one module per subject, named as in `app.services`."""
