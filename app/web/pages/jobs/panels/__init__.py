"""The tabs of one job: metrics, records, evaluations, settings, attempts, deliveries."""
