"""The name of an action in the audit log: `files.create`, `fine_tuning.jobs.cancel`, `organization.projects.update`."""

from __future__ import annotations


def audit_action(method: str, path: str) -> str:
    """The name of the action of a request. It derives from the template of the path, so a new route needs no entry."""
    segments = path.removeprefix("/v1/").split("/")
    words = [segment for segment in segments if not segment.startswith("{")]
    if method == "DELETE":
        words.append("delete")
    elif segments[-1].startswith("{"):
        words.append("update")
    elif len(words) == len(segments) or words[-1].endswith(
        "s"
    ):  # a collection; any other last word is a verb, such as cancel
        words.append("create")
    return ".".join(words)
