"""The adapter being trained: LoRA, DoRA, modules to save, initial weights."""
