"""Validation of datasets with the base model's tokenizer, and the requirements of the job."""
