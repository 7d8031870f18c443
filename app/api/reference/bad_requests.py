"""The codes of a 400: the request has to be changed."""

from __future__ import annotations

from app.api.reference.error_code import ErrorCode

BAD_REQUESTS = (
    ErrorCode(
        "conflicting_parameters", 400,
        "One knob was given twice with different values, or two that exclude each other.",
        "Give it once. The message has both places.",
        "lora.alpha = 8 contradicts hyperparameters.lora_alpha = 16; give it once, or twice with one value",
    ),
    ErrorCode(
        "file_too_large_to_plan", 400,
        "Counting the tokens of the training file for a plan takes longer than five minutes.",
        "Create the job: its validation counts them without a limit.",
        "training_file: counting its tokens takes longer than … s; create the job instead, "
        "whose validation counts them",
    ),
    ErrorCode(
        "invalid_job_state", 400,
        "The job is in a state that does not allow this: a cancel of one that has ended, a resume of one that runs.",
        "Read the job again. It is a 400 because the official client would send a 409 three times.",
        "Job ftjob-… is …; only a paused job can be resumed.",
    ),
    ErrorCode(
        "invalid_json", 400,
        "The body is not JSON, not an object, nested too deep, or has a key twice.",
        "Send one JSON object; the message says where it broke.",
        "We could not parse the JSON body of your request: ….",
    ),
    ErrorCode(
        "invalid_multipart", 400,
        "The upload is not multipart/form-data, or was cut off.",
        "Send a form, as `curl -F` and the official client do; send it again if it was cut off.",
        "Send the file as multipart/form-data with a boundary (curl -F does), not as 'application/json'.",
    ),
    ErrorCode(
        "invalid_training_file", 400,
        "The file is not strict JSON lines, or a plan found examples that a job would refuse.",
        "Mend the lines that are named; up to ten are told at once. As `job.error` see below.",
        "Expected file to have JSONL format, where every line is a valid JSON dictionary. Line 2: …",
    ),
    ErrorCode(
        "invalid_type", 400,
        "A value of the wrong JSON type: \"7\" is no number, 7 is no text.",
        "Send the type that the reference names.",
        "seed: Input should be a valid integer (got '7')",
    ),
    ErrorCode(
        "invalid_value", 400,
        "A value out of its bounds, or one that does not fit the rest of the request.",
        "Change what `param` names; the message has what is allowed, and every other problem of the request.",
        "suffix: String should have at most 64 characters (got '…)",
    ),
    ErrorCode(
        "missing_required_parameter", 400,
        "A field that has no default was left out.",
        "Send it.",
        "you must provide training_file",
    ),
    ErrorCode(
        "model_refused", 400,
        "`tunery models add` (an operator's command, not a call of the API): the directory holds code or pickles, "
        "or lacks a file.",
        "Offer a directory with safetensors, config.json and a tokenizer, and without code.",
        "… cannot be a base model: …",
    ),
    ErrorCode(
        "unknown_parameter", 400,
        "A key that does not exist; nothing is ignored silently.",
        "Mend the spelling: `param` is its dotted path, the message lists what is known there.",
        "unknown parameter lora.rnak; known here: …",
    ),
    ErrorCode(
        "unsupported_value", 400,
        "A word that OpenAI or PEFT know and this server does not offer: `reinforcement`, `integrations`, PiSSA, ...",
        "Leave it out, or take one of those that the message lists.",
        "method.type 'reinforcement' is not offered here; allowed are 'supervised' and 'dpo'",
    ),
)  # fmt: skip
