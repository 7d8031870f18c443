"""Use cases of answers: who serves a model, and the request that is passed on to it."""
