"""Pure rules without input or output, shared by the API, the worker and the trainer; no framework but pydantic."""
