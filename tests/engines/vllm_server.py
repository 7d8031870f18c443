"""A real vLLM as a process: started, killed, asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from tests.deadline import until
from tests.serving import free_port
from tests.up import ROOT

EXAMPLE = ROOT / "examples" / "support-tickets"
MAX_MODEL_LEN = 1024  # tokens
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}
# Without AVX-512, vLLM emulates bfloat16 and generates 8 tokens a second.
DTYPE = "bfloat16" if "avx512f" in Path("/proc/cpuinfo").read_text() else "float32"


def question() -> Any:
    """The messages of a held-out row without the answer."""
    return json.loads((EXAMPLE / "heldout.jsonl").read_text().splitlines()[0])["messages"][:-1]


@dataclass
class VllmServer:
    model: Path
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)  # of the plugin, for example
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [os.environ["TUNERY_VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.model), "--served-model-name", "base", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--dtype", DTYPE, "--max-model-len", str(MAX_MODEL_LEN)]
        command += ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "4", "--max-cpu-loras", "8"]
        command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
        command += ["--enforce-eager"]  # compiling takes a minute, and saves less in these few requests
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, **ENVIRONMENT, **self.environment},
                start_new_session=True,
            )

    def restart(self, **environment: str) -> None:
        """Kill it and start it again, with changed variables."""
        self.stop()
        self.environment = {**self.environment, **environment}
        self.start()

    def wait(self) -> None:
        until(self._is_healthy, "vLLM is healthy", 600, interval_seconds=1.0)

    def stop(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(self.process.pid, signal.SIGKILL)  # its own process group: the engine and its workers
            self.process.wait()
            self.process = None

    def models(self) -> list[str]:
        return [each["id"] for each in httpx2.get(f"{self.url}/v1/models").json()["data"]]

    def ask(self, model: str) -> httpx2.Response:
        body = {"model": model, "messages": question(), "temperature": 0, "max_tokens": 24}
        return httpx2.post(f"{self.url}/v1/chat/completions", json=body, timeout=120)

    def answer(self, model: str) -> str:
        response = self.ask(model)
        assert response.is_success, response.text
        return str(response.json()["choices"][0]["message"]["content"])

    def running(self) -> float:
        """The number of requests that it generates an answer to."""
        return self._metric("vllm:num_requests_running")

    def generated_tokens(self) -> float:
        return self._metric("vllm:generation_tokens_total")

    def _metric(self, name: str) -> float:
        page = httpx2.get(f"{self.url}/metrics").text
        return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name + "{"))

    def _is_healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            return httpx2.get(f"{self.url}/health", timeout=5).is_success
        except httpx2.HTTPError:
            return False
