"""Checkpoints: PEFT files, model card, provenance, verification."""
