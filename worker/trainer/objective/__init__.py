"""What is minimised: supervised or DPO loss, its metrics, the optimizer."""
