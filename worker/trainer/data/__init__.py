"""Training data: tokenized examples, packed batches, the schedule of steps."""
