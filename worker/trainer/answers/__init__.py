"""Programs that generate answers: trial answers, evaluations, a comparison of an adapter with its base."""
