"""The catalog entry of each base model: its files, layers and tokenizer."""
