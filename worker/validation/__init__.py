"""Validation of data sets with the base model's tokenizer, and the requirements of the job."""
