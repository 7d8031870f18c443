"""1 and 2: two environment variables are enough; what is not there is the exception that scripts catch."""

from __future__ import annotations

import asyncio

import openai
import pytest
from material import chats, lines
from world import BASE_URL, CONTEXT, KEY, MAJOR, MODEL, connect, counting


def test_two_environment_variables_repoint_an_unmodified_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", BASE_URL)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with openai.OpenAI() as client:
        models = client.models.list()
        assert {MODEL, CONTEXT["slashed_model"]} <= {model.id for model in models}
        assert models._request_id


@pytest.mark.parametrize("base_url", [BASE_URL, f"{BASE_URL}/"], ids=["plain", "trailing slash"])
def test_a_trailing_slash_of_the_base_url_does_not_matter(base_url: str) -> None:
    with connect(base_url=base_url) as client:
        assert client.models.retrieve(MODEL).id == MODEL


def test_organization_and_project_headers_are_taken(client: openai.OpenAI) -> None:
    other = client.with_options(organization="org-1", project="proj_1")
    assert other.models.retrieve(MODEL).object == "model"


def test_a_base_url_without_v1_is_an_error_that_names_what_is_missing() -> None:
    with connect(base_url=BASE_URL.removesuffix("/v1")) as client, pytest.raises(openai.NotFoundError) as caught:
        client.models.list()
    assert "/models" in caught.value.message


@pytest.mark.parametrize("key", ["wrong", "sk-" + "0" * 40, KEY + "x", KEY[:-1]])
def test_a_bad_key_is_an_authentication_error_in_one_request(key: str) -> None:
    seen: list[str] = []
    with counting(seen, api_key=key) as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert seen == ["GET /v1/models"]


@pytest.mark.skipif(MAJOR > 1, reason="newer clients refuse an empty key themselves")
def test_an_empty_key_is_an_authentication_error() -> None:
    with connect(api_key="") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_an_id_with_a_slash_is_a_model_in_either_encoding(client: openai.OpenAI) -> None:
    slashed = CONTEXT["slashed_model"]
    assert client.models.retrieve(slashed).id == slashed
    for path in (f"/models/{slashed}", f"/models/{slashed.replace('/', '%2F')}"):
        assert client.get(path, cast_to=object)["id"] == slashed  # type: ignore[index]


def test_the_asynchronous_client_works_too() -> None:
    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY) as client:
            file = await client.files.create(file=lines(chats(10)), purpose="fine-tune")
            found = [seen.id async for seen in client.files.list(limit=1, purpose="fine-tune") if seen.id == file.id]
            await client.files.delete(file.id)
            return found

    assert len(asyncio.run(run())) == 1
