from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from app.domain.evaluations.graders import ScoreModel

TEXT = {"type": "input_text", "text": "{{ sample.output_text }}"}


def score_model(content: Any) -> ScoreModel:
    message = {"type": "message", "role": "user", "content": content}
    return ScoreModel.model_validate({"type": "score_model", "name": "judge", "model": "m", "input": [message]})


class TestScoreModel:
    @pytest.mark.parametrize(
        ("content", "text"),
        [
            *((content, TEXT["text"]) for content in (TEXT["text"], TEXT, [TEXT])),
            ([{"type": "output_text", "text": "a "}, {"type": "input_text", "text": "b"}], "a b"),
        ],
    )
    def test_a_text_may_have_the_shape_in_which_openais_evals_return_it(self, content: Any, text: str) -> None:
        assert score_model(content).input[0].content == text

    @pytest.mark.parametrize(
        "content", [[], {}, [TEXT, {"type": "input_image", "image_url": "x"}], {"type": "input_text", "text": 3}]
    )
    def test_anything_else_is_refused(self, content: Any) -> None:
        with pytest.raises(ValidationError, match="valid string"):
            score_model(content)

    def test_the_template_of_a_message_is_checked(self) -> None:
        with pytest.raises(ValidationError, match="item"):
            score_model({"type": "input_text", "text": "{{ items.a }}"})
