"""The first points of a long job: drawn if they arrive before its metrics."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from app.web.api_client import ApiClient, ApiError
from app.web.pages.jobs.metrics import preview_rows

Json = dict[str, Any]
CURVE = {"data": [{"steps": [1, 9], "train_losses": [2.0, 0.5]}]}


class StubApi:
    def __init__(self, response: Json | Exception | None) -> None:
        self._response = response

    async def get(self, path: str, **_: Any) -> Json:
        assert path == "fine_tuning/loss_curves"
        if self._response is None:
            await asyncio.Event().wait()
        if isinstance(self._response, Exception):
            raise self._response
        return cast(Json, self._response)


async def rows_with(response: Json | Exception | None, are_metrics_there: bool) -> list[Json]:
    metrics: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
    if are_metrics_there:
        metrics.set_result({})
    return await preview_rows(cast(ApiClient, StubApi(response)), "ftjob-1", metrics)


def test_they_are_rows_of_step_and_loss() -> None:
    rows = asyncio.run(rows_with(CURVE, are_metrics_there=False))
    assert rows == [{"step": 1, "train_loss": 2.0}, {"step": 9, "train_loss": 0.5}]


@pytest.mark.parametrize(
    ("response", "are_metrics_there"), [(None, True), (CURVE, True), (ApiError("the API is unreachable"), False)]
)
def test_there_are_none_if_the_metrics_are_first_or_the_request_fails(
    response: Json | Exception | None, are_metrics_there: bool
) -> None:
    assert asyncio.run(rows_with(response, are_metrics_there)) == []
