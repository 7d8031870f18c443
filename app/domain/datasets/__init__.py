"""Rules of training data: JSONL lines, messages, chat templates, loss masks, reports."""
