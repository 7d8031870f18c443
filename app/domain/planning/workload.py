"""What the data set makes of a job: how many steps, and how many tokens go through the model in them and beside."""

from __future__ import annotations

from dataclasses import dataclass

from app.domain.jobs.spec import JobSpec
from app.domain.planning.packing import Lengths, total_steps, trained_tokens, validations


@dataclass(frozen=True)
class Work:
    steps: int
    tokens: int  # that go through the model until the last step
    lengths: Lengths
    labelled_share: float = 1.0  # of the tokens; the others never meet the head
    validated_tokens: int = 0  # by all validations together
    attended: int = 0  # tokens of a token's document, on average over tokens

    @classmethod
    def of(
        cls, spec: JobSpec, lengths: Lengths, labelled_tokens: int | None = None, validation_tokens: int = 0
    ) -> Work:
        """`labelled_tokens` of one epoch; `validation_tokens` of the validation file, once."""
        knobs, tokens = spec.hyperparameters, sum(lengths.tokens)
        share = 1.0 if labelled_tokens is None else labelled_tokens / max(1, tokens)
        if not len(lengths):
            return cls(total_steps(knobs, 0), 0, lengths, share)
        return cls(
            steps=total_steps(knobs, len(lengths)),
            tokens=trained_tokens(lengths, knobs, spec.seed),
            lengths=lengths,
            labelled_share=share,
            validated_tokens=validation_tokens * validations(knobs, len(lengths)),
            attended=lengths.attended,
        )
