"""The name of a call in the audit log: `files.create`, `fine_tuning.jobs.cancel`, `organization.projects.update`."""

from __future__ import annotations


def name_of(method: str, path: str) -> str:
    """From the template of a path, so that a new route has a name without anybody choosing one."""
    segments = path.removeprefix("/v1/").split("/")
    words = [segment for segment in segments if not segment.startswith("{")]
    if method == "DELETE":
        words.append("delete")
    elif segments[-1].startswith("{"):
        words.append("update")
    elif len(words) == len(segments) or words[-1].endswith("s"):  # a collection; other last words are verbs: cancel
        words.append("create")
    return ".".join(words)
