"""27: every query parameter that a method of this client can send is known to the route that it calls."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from signatures import Sent, known_requests
from world import CONTEXT, ROOT_URL, document

SENT = known_requests(document())


def error_of(sent: Sent) -> dict[str, Any]:
    """What the server has to say about a request; nothing of one that it answers."""
    headers = {"Authorization": f"Bearer {CONTEXT['admin_key']}"}
    request = urllib.request.Request(f"{ROOT_URL}{sent.path}?{sent.query}", headers=headers, method=sent.method)
    try:
        with urllib.request.urlopen(request):
            return {}
    except urllib.error.HTTPError as refused:
        return dict(json.load(refused)["error"])


def test_the_lists_of_jobs_files_and_permissions_are_among_them() -> None:
    called = {sent.name for sent in SENT}
    assert {"files.list", "fine_tuning.jobs.list", "fine_tuning.jobs.list_events"} <= called
    assert {"fine_tuning.jobs.checkpoints.list", "fine_tuning.checkpoints.permissions.retrieve"} <= called


@pytest.mark.parametrize("sent", SENT, ids=lambda sent: sent.name)
def test_a_parameter_of_the_client_is_known(sent: Sent) -> None:
    error = error_of(sent)
    assert error.get("code") not in ("unknown_parameter", "insufficient_permissions", "invalid_api_key"), error
    assert "unknown query parameter" not in error.get("message", "")
