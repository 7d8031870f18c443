"""The workload of a job: its steps, and the tokens that the model processes in training and validation."""

from __future__ import annotations

from dataclasses import dataclass

from app.domain.jobs.spec import JobSpec
from app.domain.planning.packing import SequenceLengths, total_steps, trained_tokens, validation_count


@dataclass(frozen=True)
class Workload:
    """What a job computes, derived from its spec and the lengths of its data."""

    steps: int
    tokens: int  # processed in all training steps
    lengths: SequenceLengths
    labelled_share: float = 1.0  # of the tokens; only these need logits
    validated_tokens: int = 0  # in all validations together
    mean_attended_tokens: int = 0  # length of a token's document, averaged over tokens

    @classmethod
    def of(
        cls, spec: JobSpec, lengths: SequenceLengths, labelled_tokens: int | None = None, validation_tokens: int = 0
    ) -> Workload:
        """`labelled_tokens` are those of one epoch, `validation_tokens` those of one validation."""
        hyperparameters, tokens = spec.hyperparameters, sum(lengths.tokens)
        share = 1.0 if labelled_tokens is None else labelled_tokens / max(1, tokens)
        if not len(lengths):
            return cls(total_steps(hyperparameters, 0), 0, lengths, share)
        return cls(
            steps=total_steps(hyperparameters, len(lengths)),
            tokens=trained_tokens(lengths, hyperparameters, spec.seed),
            lengths=lengths,
            labelled_share=share,
            validated_tokens=validation_tokens * validation_count(hyperparameters, len(lengths)),
            mean_attended_tokens=lengths.mean_attended_tokens,
        )
