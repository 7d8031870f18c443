"""Use cases of training data: line checks, token counts and reports, in processes of their own."""
