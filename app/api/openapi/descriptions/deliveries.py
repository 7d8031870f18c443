"""Descriptions of delivery targets and deliveries."""

from __future__ import annotations

BY_SCHEMA = {
    "DeliveryBody.attempts": "The number of attempts so far.",
    "DeliveryBody.checkpoint": "The checkpoint whose adapter is delivered.",
    "DeliveryBody.delivered_at": "When the target first had it, in seconds since 1970; null: not yet.",
    "DeliveryBody.location": "What the target has, as its kind reports it: a path, a revision, objects, with "
    "its `served_model`; `earlier` has the places before the target was changed; null: nothing.",
    "DeliveryBody.next_attempt_at": (
        "The next attempt, in seconds since 1970. Of one that is `delivered` it looks whether the engine still has it. "
        "Null: none is due."
    ),
    "DeliveryBody.updated_at": "The last change, in seconds since 1970.",
    "DeliveryOfJob.check": (
        "Whether an engine computes with the adapter what the trainer computed; null: not compared, as other kinds do "
        "not answer, and a checkpoint before the result has nothing to compare with."
    ),
    "DeliveryOfJob.error": "Why the last attempt failed and what to do; null: it did not.",
    "DeliveryOfJob.model": "The `ft:` name.",
    "DeliveryOfJob.served_model": "The name under which the target has it.",
    "DeliveryOfJob.status": (
        "`pending` until an attempt succeeds or eleven have failed; `withdrawing` until it is removed from the target."
    ),
    "DeliveryOfJob.target": "The name of the delivery target.",
    "EngineCompatibility.instead": "What to serve instead; null if `ok`.",
    "ServedCheck.difference": "Mean |trainer - engine| under the adapter, in nats per expected token.",
    "ServedCheck.engine_effect": "Mean |base - adapter| in the engine.",
    "ServedCheck.largest_difference": "The largest |trainer - engine|; only for information.",
    "ServedCheck.method": (
        "`prompt`: the log-probabilities of every expected token. `answer`: those of the engine's own answers, up to "
        "where they differ from the expected ones, as it has none of prompts. `chat`: the same in a chat."
    ),
    "ServedCheck.noise": "The trainer's own mean difference between 16 bits and float32.",
    "ServedCheck.prompts": "The number of held-out prompts.",
    "ServedCheck.tokens": "The number of expected tokens.",
    "ServedCheck.reason": "Why nothing was compared (`unchecked`); else null.",
    "ServedCheck.top1_agreement": "The share of tokens at which trainer and engine have the same most likely token.",
    "ServedCheck.trainer_effect": "Mean |base - adapter| in the trainer.",
    "ServedCheck.verdict": (
        "`same`, `differs`, `no_effect` (the engine answers as the base model does), `unclear`, "
        "`too_small_to_tell`, or `unchecked` (nothing to compare with). `differs` and `no_effect` fail the delivery."
    ),
}
