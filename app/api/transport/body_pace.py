"""Limits of a request body that is still arriving."""

from __future__ import annotations

from app.errors import RequestTimeout
from app.settings import Settings

ADVICE = "Send the request again; a resumable upload continues at its Upload-Offset."


class BodyPace:
    """The two limits of a body that is still arriving: the longest pause and the lowest average rate.

    Only the time that the server waits for the client counts, not the time that a slow disk takes to store the body.
    The average is taken over consecutive windows of `body_rate_window_seconds`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._paused_seconds = 0.0
        self._window_seconds = 0.0
        self._window_bytes = 0

    @property
    def next_check_seconds(self) -> float:
        """How much longer the server may wait before `add` has to be called, with or without new bytes."""
        pause_left_seconds = self._settings.body_idle_seconds - self._paused_seconds
        return max(0.0, min(pause_left_seconds, self._settings.body_rate_window_seconds - self._window_seconds))

    def add(self, waited_seconds: float, received_bytes: int) -> None:
        """Add one wait for the client and the bytes received. Raises RequestTimeout when a limit is reached."""
        self._paused_seconds = 0.0 if received_bytes else self._paused_seconds + waited_seconds
        self._window_seconds += waited_seconds
        self._window_bytes += received_bytes
        idle_seconds = self._settings.body_idle_seconds
        if self._paused_seconds >= idle_seconds:
            raise RequestTimeout(f"No byte of the request body arrived for {idle_seconds:g} s. {ADVICE}")
        if self._window_seconds >= self._settings.body_rate_window_seconds:
            self._check_rate()
            self._window_seconds, self._window_bytes = 0.0, 0

    def _check_rate(self) -> None:
        min_bytes_per_second = self._settings.body_min_bytes_per_second
        if self._window_bytes < min_bytes_per_second * self._window_seconds:
            raise RequestTimeout(
                f"The request body arrived at less than {min_bytes_per_second:g} bytes per second, averaged over "
                f"{self._settings.body_rate_window_seconds:g} s. {ADVICE}"
            )
