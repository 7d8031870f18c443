"""The codes of a 400: the request has to be changed."""

from __future__ import annotations

from tools.api_reference.error_code import ErrorCode

BAD_REQUESTS = (
    ErrorCode(
        "conflicting_parameters", 400,
        "One knob was given twice with different values, or two that exclude each other.",
        "Give it once. The message has both places.",
        "lora.alpha = 8 contradicts hyperparameters.lora_alpha = 16; give it once, or twice with one value",
    ),
    ErrorCode(
        "file_deleted", 400,
        "A clone would take a file of the original job that was deleted since.",
        "Name another one in the body: `training_file`, `validation_file`.",
        "training_file: file-… of job ftjob-… was deleted; name another training_file in the body",
    ),
    ErrorCode(
        "file_too_large_to_plan", 400,
        "Counting the tokens of the training file for a plan takes longer than five minutes.",
        "Create the job: its validation counts them without a limit.",
        "training_file: counting its tokens takes longer than … s; create the job instead, "
        "whose validation counts them",
    ),
    ErrorCode(
        "idempotency_key_reused", 400,
        "The `Idempotency-Key` was sent within the last 24 hours with another body, or to another path.",
        "A key belongs to one request: a new request takes a new key.",
        'Idempotency-Key: "…" was used within the last 24 hours for …; send the same request again, or a new '
        "request with a new key",
    ),
    ErrorCode(
        "invalid_endpoint_state", 400,
        "A delivery of a disabled webhook endpoint, or one that was a test, was to be delivered again.",
        "Enable the endpoint first (`enabled: true`); a test is not repeated, send another.",
        "Endpoint wh_… is disabled; enable it first.",
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
        'Send the file as multipart/form-data with a boundary (curl -F does), not as "application/json".',
    ),
    ErrorCode(
        "invalid_project_state", 400,
        "The project is archived, or it can't be archived while jobs of its are unfinished.",
        "Keys are for projects that are not archived. To archive one with its jobs, send `cancel_jobs: true`.",
        'Project "…" is archived, so its keys are not valid; unarchive it first.',
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
        'seed: must be a whole number, not "7"',
    ),
    ErrorCode(
        "invalid_upload_state", 400,
        "The upload was completed or cancelled, so nothing can be added to it.",
        "Read the upload: a completed one has its `file`. Else begin another one.",
        "Upload upload_… is cancelled, so it …; only a pending upload can.",
    ),
    ErrorCode(
        "invalid_value", 400,
        "A value out of its bounds, or one that does not fit the rest of the request.",
        "Change what `param` names; the message has what is allowed, and every other problem of the request.",
        'suffix: "…" has … characters; at most 64 are allowed',
    ),
    ErrorCode(
        "md5_mismatch", 400,
        "The parts put together do not have the `md5` that was sent to complete the upload.",
        "Compare the parts' `sha256`, send the wrong one again, and complete with the new list. The upload "
        "stays pending.",
        "md5: the file's is …, not …; a part was altered, left out or misplaced",
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
        "model_unavailable", 400,
        "An export needs the base model of the job, which was removed or has other files by now.",
        "Ask the operator to register it as it was. As `job.error` see below.",
        'The files registered as "…" are not those that the adapter was trained on.',
    ),
    ErrorCode(
        "unknown_parameter", 400,
        "A key of a body, a form field or a query parameter that does not exist; nothing is ignored silently.",
        "Mend the spelling: `param` is its dotted path, the message lists what is known there.",
        "unknown parameter lora.rnak; known here: …",
    ),
    ErrorCode(
        "unsupported_value", 400,
        "A word that OpenAI or PEFT know and this server does not offer: `reinforcement`, `integrations`, PiSSA, ...",
        "Leave it out, or take one of those that the message lists.",
        'method.type "reinforcement" is not offered here; allowed are "supervised" and "dpo"',
    ),
    ErrorCode(
        "upload_expired", 400,
        "The upload was not completed in time; its parts are gone.",
        "Begin another one. An operator may give more time with `TUNERY_UPLOAD_TTL_SECONDS`.",
        "Upload upload_… has expired, so it …; create another one with POST /v1/uploads.",
    ),
    ErrorCode(
        "upload_offset_mismatch", 400,
        "`Content-Range` begins elsewhere than where the content that is here ends.",
        "`HEAD` on the same URL tells in `Upload-Offset` where to go on.",
        "Content-Range: begins at byte …, but … bytes of upload upload_… are stored; continue there, or send "
        "all of it without Content-Range.",
    ),
    ErrorCode(
        "upload_size_mismatch", 400,
        "The parts in `part_ids` have more or fewer bytes together than the upload was declared with.",
        "Name all parts, each once; `GET /v1/uploads/{id}/parts` lists them.",
        "The parts have … bytes together, but the upload was declared with …; name all of its parts, each once.",
    ),
    ErrorCode(
        "upload_taken_over", 400,
        "A later request sends the content of this upload now, so the content of this one is not stored.",
        "Send the content from one place at a time. After a break the newer request is the one that counts.",
        "A later request sends the content of upload upload_… now; no more content of this request is stored.",
    ),
    ErrorCode(
        "validation_too_slow", 400,
        "Reading the file for a report on it took too long: the service is busy, or a line is huge.",
        "Ask again later, or create the job: its validation takes the time it needs.",
        "The file could not be read within … s; the service is busy, or one of its lines is huge. Create the "
        "job: its validation takes the time it needs",
    ),
    ErrorCode(
        "webhook_unreachable", 400,
        "The test of a webhook endpoint got no answer: no such name, nobody listens, a bad certificate, too slow.",
        "The message says what happened. Mend the receiver or the `url`, and test again.",
        "The test did not reach wh_…: …",
    ),
)  # fmt: skip
