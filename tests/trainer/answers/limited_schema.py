"""A program that compiles a schema under limits: `python -m ... TOKENIZER PATTERNS SECONDS SIZE_BYTES`."""

import sys

from llguidance import LLMatcher, LLTokenizer

from worker.trainer.answers.response_format import schema_limits

tokenizer, patterns, seconds, size_bytes = sys.argv[1:]
schema = {"allOf": [{"type": "string", "pattern": f".*{chr(97 + at)}.*"} for at in range(int(patterns))]}
tokens, grammar = LLTokenizer(tokenizer), LLMatcher.grammar_from_json_schema(schema)
with schema_limits(float(seconds), int(size_bytes)):
    LLMatcher(tokens, grammar, log_level=0)
