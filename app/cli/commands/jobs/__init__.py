"""`tunery jobs` and `tunery adapters`: jobs, their plans, records, exports, deliveries, evaluations and adapters."""
