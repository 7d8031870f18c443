"""HTTP handlers of fine-tuning jobs: create, list, read, control, records, adapters, exports."""
