"""Answers in JSON: whatever the model prefers, every complete answer parses and obeys its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from app.domain.datasets.render import Renderer
from worker.trainer.answers.response_format import JsonGuide, JsonSchemas, SchemaRefused

STOP = "<|end|>"
MAX_TOKENS = 400
PROMPT = [1, 2, 3]
CORPUS = ['{"label": "refund", "reasons": [{"code": 12, "text": "late \\u00e4"}], "is_open": true}, {"a":-1.5e3}', STOP]
LIMITS = st.integers(0, 20)


@cache
def renderer(stops: tuple[str, ...] = (STOP,)) -> Renderer:
    """A byte-level tokenizer whose tokens go across the parts of JSON, such as `": [{"`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(STOP, special=True)])
    return Renderer(tokenizer, None, {}, stops, [])


@cache
def schemas() -> JsonSchemas:
    return JsonSchemas(renderer(), renderer().tokenizer.get_vocab_size() + 7)  # some rows of a model have no token


def answer(schema: dict[str, Any], seed: int, schemas_: JsonSchemas | None = None) -> str | None:
    """The text of a model with random preferences; None if MAX_TOKENS cut it."""
    guide = JsonGuide((schemas_ or schemas()).matcher(schema), len(PROMPT))
    random, stop = torch.Generator().manual_seed(seed), renderer().stop_ids[0]
    tokens: list[int] = []
    while len(tokens) < MAX_TOKENS:
        scores_1_V = torch.rand(1, renderer().tokenizer.get_vocab_size() + 7, generator=random)
        token = int(guide(torch.tensor([PROMPT + tokens]), scores_1_V).argmax())
        if token == stop:
            return renderer().decode(tokens)
        tokens.append(token)
    return None


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.text('abä" \\\n', min_size=1, max_size=4)
    return st.dictionaries(names, values, max_size=4).map(
        lambda fields: {
            "type": "object",
            "properties": fields,
            "required": [*fields],
            "additionalProperties": False,
        }
    )


LEAVES = st.one_of(
    st.builds(lambda most: {"type": "string", "maxLength": most}, LIMITS),
    st.builds(lambda low, more: {"type": "integer", "minimum": low - 9, "maximum": low + more}, LIMITS, LIMITS),
    st.builds(lambda low: {"type": "number", "minimum": low, "maximum": low + 0.5}, LIMITS),
    st.lists(st.one_of(st.text(max_size=5), st.integers(-9, 99), st.none()), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": "string", "format": "uuid"}]),
    st.sampled_from(
        [{"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"}, {"const": "ü"}, {"type": ["null", "boolean"]}]
    ),
)
SCHEMAS = objects(
    st.recursive(
        LEAVES,
        lambda values: st.one_of(
            objects(values),
            st.builds(
                lambda items, most: {"type": "array", "items": items, "maxItems": most}, values, st.integers(0, 3)
            ),
            st.lists(values, min_size=1, max_size=3).map(lambda each: {"anyOf": each}),
        ),
        max_leaves=6,
    )
)


@settings(max_examples=60, deadline=None)
@given(SCHEMAS, st.integers(0, 2**31))
def test_every_complete_answer_parses_and_obeys_its_schema(schema: dict[str, Any], seed: int) -> None:
    text = answer(schema, seed)
    assume(text is not None)
    jsonschema.validate(json.loads(str(text)), schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_of_any_fields_is_an_object(seed: int) -> None:
    text = answer({"type": "object", "maxProperties": 2, "additionalProperties": {"type": "boolean"}}, seed)
    assert isinstance(json.loads(text or "{}"), dict)


def test_fields_come_in_the_order_of_the_schema_in_the_style_of_json_dumps() -> None:
    names = ["z", "a", "m"]
    fields: dict[str, Any] = {name: {"enum": [1, 2]} for name in names}
    text = answer({"type": "object", "properties": fields, "required": names, "additionalProperties": False}, 3)
    assert list(json.loads(text or "")) == names
    assert text == json.dumps(json.loads(text or ""))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "objekt"}, "Invalid type: objekt"),
        ({"type": "string", "not": {"const": "x"}}, 'Unimplemented keys: ["not"]'),
        ({"$ref": "#/$defs/gone"}, "does not exist"),
        ({"$ref": "https://example.com/schema.json"}, "does not fetch"),
        ({"$ref": "#"}, "NoExtension"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
        ({"type": "string", "format": "postcode"}, "Unknown format: postcode"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_with_the_reason(schema: dict[str, Any], said: str) -> None:
    with pytest.raises(SchemaRefused, match=re.escape(said)) as refused:
        schemas().matcher(schema)
    assert "<state>" not in str(refused.value)


@pytest.mark.parametrize("stops", [(), ("<|gone|>",)])
def test_a_model_without_a_stop_token_is_refused(stops: Sequence[str]) -> None:
    with pytest.raises(SchemaRefused, match="ends an answer"):
        JsonSchemas(renderer(tuple(stops)), 300)
