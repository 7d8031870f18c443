"""The frozen base model: loading, quantization, attention, checks."""
