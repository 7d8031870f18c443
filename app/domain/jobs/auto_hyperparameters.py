"""What "auto" means: rules from the number of examples and the base model's entry to numbers. Pure arithmetic.

Where each rule comes from, and what was measured with it: docs/decisions/0017-auto.md. What is not here has one value
for everybody (Hyperparameters and LoraSpec are filled in by resolve.py).
"""

from __future__ import annotations

import math

from app.domain.jobs.spec import LoraSpec

REFERENCE_LENGTH = 1200  # steps x epochs for which the rate in a model's entry is meant, such as 400 steps in 3 epochs
REFERENCE_STRENGTH = 32.0  # scale x rank: alpha, but for rsLoRA; "LoRA Without Regret" has alpha 32 for every rank
STEPS_PER_EPOCH = 32
WARMUP_RATIO = 0.03


def auto_epochs(n_examples: int) -> int:
    """OpenAI's rule (its cookbook): start at 3 and keep examples x epochs within 100 to 25,000."""
    if 3 * n_examples < 100:
        return min(25, 100 // n_examples)
    if 3 * n_examples > 25_000:
        return max(1, 25_000 // n_examples)
    return 3


def auto_batch_size(n_examples: int, most: int) -> int:
    """Examples per step: small batches suit LoRA ("LoRA Without Regret"), so at least 32 steps an epoch, and no more
    than `most`, which is the base model's own bound.
    """
    return max(1, min(most, n_examples // STEPS_PER_EPOCH))


def auto_learning_rate(reference: float, steps: int, steps_per_epoch: int, lora: LoraSpec) -> float:
    """The peak rate of a run of `steps` optimizer steps; `reference` is the base model's own.

    A short run has to get there in fewer steps; a long one, above all one that reads its rows again and again, learns
    them by heart. So it falls with steps x epochs, but hardly, with the sixteenth root: 1.56 times the reference for a
    single step, 0.88 times it for 9,000. And one step of Adam moves B A x by about rate x scale x rank, so more of
    those means a lower rate. It is rounded to two digits, because it is not known more exactly.
    """
    epochs = max(1.0, steps / steps_per_epoch)
    by_length = (REFERENCE_LENGTH / (steps * epochs)) ** (1 / 16)
    by_strength = min(1.0, REFERENCE_STRENGTH / _strength(lora))  # a higher rate for less would upset A
    return float(f"{reference * by_length * by_strength:.1e}")


def _strength(lora: LoraSpec) -> float:
    """scale x rank, with the scale alpha / r (arXiv 2106.09685) or, in rsLoRA, alpha / sqrt(r) (arXiv 2312.03732)."""
    return lora.alpha * (math.sqrt(lora.r) if lora.use_rslora else 1.0)
