"""What the service knows of each base model: its files, layers and tokenizer."""
