"""Descriptions of delivery targets and deliveries."""

from __future__ import annotations

BY_SCHEMA = {
    "CreateDeliveryTarget.destination": "Where adapters go, by `kind`.",
    "DeliveryTargetBody.credentials": "The names of the stored credentials.",
    "DeliveryTargetBody.default": "Whether jobs without `deliver_to` are delivered there.",
    "DeliveryTargetBody.destination": "Where adapters go.",
    "DeliveryTargetBody.error": "Why the credentials cannot be used, and what to do; null: they can.",
    "DeliveryTargetBody.kind": "The kind of the destination.",
    "DeliveryTargetBody.name": "The name, unique in the project.",
    "DeliveryTargetBody.served_model": "The one name for every adapter delivered there; null: the `ft:` names.",
    "DeliveryTargetBody.status": (
        "`credentials_lost`: no encryption key of the service decrypts the credentials. Deliveries stay as they are, "
        "and continue once the key is back or the credentials are set again."
    ),
    "DeliveryTargetBody.updated_at": "The last change, in seconds since 1970.",
    "DirectoryDestination.kind": "A directory of the server.",
    "HuggingFaceDestination.kind": "The Hugging Face Hub.",
    "S3Destination.bucket": "The bucket.",
    "S3Destination.kind": "A bucket of S3, or of a server that is compatible with it.",
    "S3Destination.region": "The region of the bucket.",
    "SglangDestination.kind": "SGLang.",
    "VllmDestination.kind": "vLLM.",
}
