"""examples/kubernetes: valid objects, with the commands, checks and limits of docker-compose.yml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.operations.deploy import compose, dockerfile

FILE = Path(__file__).parents[3] / "examples" / "kubernetes" / "tunery.yaml"
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all(FILE.read_text(encoding="utf-8")))
BACKUP: list[dict[str, Any]] = list(yaml.safe_load_all(FILE.with_name("backup.yaml").read_text(encoding="utf-8")))
PODS = {
    each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in OBJECTS if "template" in each.get("spec", {})
}
CONTAINERS = {name: pod["containers"][0] for name, pod in PODS.items()}
COMPOSE = {name: service for name, service in compose.services().items() if compose.is_ours(service)}


@pytest.mark.parametrize("body", [*OBJECTS, *BACKUP], ids=lambda body: f"{body['kind']} {body['metadata']['name']}")
def test_every_object_is_valid(body: dict[str, Any]) -> None:
    kubernetes_validate.validate(body, "1.37", strict=True)


def test_every_process_of_compose_has_a_pod() -> None:
    assert CONTAINERS.keys() == COMPOSE.keys() - {"gpu-worker-without-gpu"}


@pytest.mark.parametrize("name", CONTAINERS)
class TestPod:
    def test_the_container_runs_the_command_of_compose_in_the_same_image(self, name: str) -> None:
        service, container = COMPOSE[name], CONTAINERS[name]
        assert container["args"] == service["command"]
        assert container["image"].rpartition("/")[2] == service["image"]

    def test_the_probe_is_the_check_of_compose(self, name: str) -> None:
        service, container = COMPOSE[name], CONTAINERS[name]
        check = service.get("healthcheck") or {
            "test": ["CMD", *dockerfile.load().health_check(compose.target(service))]
        }
        if check.get("disable"):
            assert "livenessProbe" not in container
        elif "worker.health" in check["test"]:
            assert container["livenessProbe"]["exec"]["command"] == check["test"][1:]
        else:
            paths = {container[kind]["httpGet"]["path"] for kind in container if kind.endswith("Probe")}
            assert "/healthz" in paths

    def test_the_grace_period_is_that_of_compose(self, name: str) -> None:
        seconds = int(str(COMPOSE[name].get("stop_grace_period", "30s")).removesuffix("s"))
        assert PODS[name].get("terminationGracePeriodSeconds", 30) >= seconds

    def test_the_container_is_unprivileged_and_writes_only_to_volumes(self, name: str) -> None:
        pod, security = PODS[name]["securityContext"], CONTAINERS[name]["securityContext"]
        assert (pod["runAsNonRoot"], pod["runAsUser"]) == (True, 10001)
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert PODS[name]["automountServiceAccountToken"] is False
        assert ("envFrom" in CONTAINERS[name]) == (name != "web")  # a client of the API: no database, no secret

    def test_the_container_mounts_only_volumes_that_exist(self, name: str) -> None:
        owner = next(each for each in OBJECTS if each["metadata"]["name"] == name and "template" in each["spec"])
        claimed = {each["metadata"]["name"] for each in owner["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"] for volume in PODS[name].get("volumes", [])} | claimed
        assert {mount["name"] for mount in CONTAINERS[name].get("volumeMounts", [])} == volumes


def test_the_backup_has_the_settings_and_the_image_of_the_api() -> None:
    pod = BACKUP[1]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"][:2] == ["tunery", "backup"]
    assert (container["image"], container["envFrom"]) == (CONTAINERS["api"]["image"], CONTAINERS["api"]["envFrom"])
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in pod["volumes"]}


def test_a_gpu_worker_has_one_gpu() -> None:
    assert CONTAINERS["gpu-worker"]["resources"]["limits"]["nvidia.com/gpu"] == 1
