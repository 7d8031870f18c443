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

import httpx2

from tests.deadline import until
from tests.serving import free_port
from tests.up import ROOT

EXAMPLE = ROOT / "examples" / "support-tickets"
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
}


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
        command += ["--port", str(self.port), "--dtype", "bfloat16", "--max-model-len", "1024"]
        command += ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "4", "--max-cpu-loras", "8"]
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
        question = json.loads((EXAMPLE / "heldout.jsonl").read_text().splitlines()[0])["messages"][:-1]
        body = {"model": model, "messages": question, "temperature": 0, "max_tokens": 24}
        return httpx2.post(f"{self.url}/v1/chat/completions", json=body, timeout=120)

    def _is_healthy(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        try:
            return httpx2.get(f"{self.url}/health", timeout=5).is_success
        except httpx2.HTTPError:
            return False
