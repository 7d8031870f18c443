"""One server of an inference engine over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from worker.deliveries.destination import DeliveryError
from worker.deliveries.outbound import limited_connections, refused_address

CONNECT_SECONDS = 5.0
MAX_RESPONSE_BYTES = 64 << 20  # prompt_logprobs of a prompt take some 100 kB
MAX_MESSAGE_CHARACTERS = 600
AWAY = "check that the server runs and that `urls` of the target has its address"
NOT_THE_ENGINE = "check that `urls` of the target has the address of the engine"
SLOW = "lower its load, or raise TUNERY_DELIVERY_TIMEOUT_SECONDS of the delivery sender"


@dataclass(frozen=True)
class EngineModel:
    """An entry of GET /v1/models. `root` is the path of an adapter, or what a base model was loaded from."""

    id: str
    root: str
    is_adapter: bool


class Server:
    """One server of an engine over HTTP. Every method raises DeliveryError."""

    def __init__(self, url: str, api_key: str | None, timeout_seconds: float) -> None:
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_seconds = timeout_seconds

    def models(self) -> list[EngineModel]:
        response = self.request("GET", "/v1/models")
        try:
            return [
                EngineModel(str(each["id"]), str(each.get("root") or each["id"]), each.get("parent") is not None)
                for each in response["data"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            text = f"{self.url}/v1/models responded with something else than a list of models; {NOT_THE_ENGINE}"
            raise DeliveryError(text) from error

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON of a 2xx response. Redirects are not followed, and the whole response is limited in time."""
        status, content = self._send(method, path, body)
        if 300 <= status < 400:
            raise DeliveryError(f"{self.url}{path} is a redirect, which is not followed: set `urls` to the final URL")
        if status in (401, 403):
            raise DeliveryError(f"{self.url} refuses the API key ({status}); set credentials.api_key of the target")
        if status >= 300:
            raise EngineRefusal(f"{self.url}{path} responded with {status}: {_message(content)}", status)
        try:
            parsed = json.loads(content or b"{}")
        except ValueError:
            parsed = None
        return parsed if isinstance(parsed, dict) else {"text": content.decode(errors="replace")}

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, bytes]:
        timeout = httpx2.Timeout(self._timeout_seconds, connect=CONNECT_SECONDS)
        with limited_connections(self._timeout_seconds) as limit:
            try:
                with (
                    httpx2.Client(timeout=timeout, trust_env=False, headers=self._headers) as client,
                    client.stream(method, self.url + path, json=body) as response,
                ):
                    content = b""
                    for chunk in response.iter_bytes():
                        content += chunk
                        if len(content) > MAX_RESPONSE_BYTES:
                            text = f"{self.url}{path} sent more than {MAX_RESPONSE_BYTES >> 20} MiB; {NOT_THE_ENGINE}"
                            raise DeliveryError(text)
                    return response.status_code, content
            except (httpx2.HTTPError, OSError) as error:
                raise DeliveryError(self._reason(path, error, is_late=limit.is_over)) from error

    def _reason(self, path: str, error: Exception, *, is_late: bool) -> str:
        if is_late or isinstance(error, httpx2.ReadTimeout | httpx2.WriteTimeout):
            return f"{self.url}{path} sent no complete response in {self._timeout_seconds:g} s; {SLOW}"
        if refusal := refused_address(error):
            return f"{self.url} is not reachable: {refusal}"
        return f"{self.url} is not reachable: {error or type(error).__name__}; {AWAY}"


class EngineRefusal(DeliveryError):
    """The engine responded with an error."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _message(content: bytes) -> str:
    """The message of an error in OpenAI's shape or SGLang's, else the body."""
    try:
        parsed = json.loads(content)
        error = parsed.get("error", parsed)
        text = error.get("message") or error.get("error_message") or parsed.get("error_message") or content.decode()
    except (ValueError, AttributeError):
        text = content.decode(errors="replace")
    return " ".join(str(text).split())[:MAX_MESSAGE_CHARACTERS]
