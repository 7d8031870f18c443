"""Request and response bodies of fine-tuning jobs."""
