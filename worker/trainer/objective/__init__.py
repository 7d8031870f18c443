"""Objectives: supervised and DPO loss, their metrics, the optimizer."""
