"""How fast texts are generated, by which `AdmissionQueue` predicts what those that wait will take."""

from __future__ import annotations

import threading

_SMOOTHING = 0.05  # weight of the newest step or text
_ENOUGH = 8  # texts that have ended before anything is predicted


class Pace:
    """Running means: seconds for each new token of all texts together, their prompts' time included, and how much of
    their `max_tokens` texts come to. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds, self._used, self._ended = 0.0, 1.0, 0
        self._prompts = 0.0  # seconds of the latest steps, in which there was no new token

    def note_step(self, tokens: int, seconds: float) -> None:
        """One step. tokens: new ones, of all texts."""
        with self._lock:
            self._prompts += seconds
            if tokens:
                each, self._prompts = self._prompts / tokens, 0.0
                self._seconds += (_SMOOTHING if self._seconds else 1.0) * (each - self._seconds)

    def note_text(self, tokens: int, most: int) -> None:
        """A text has ended after so many new tokens, of the most that it might get."""
        with self._lock:
            self._ended += 1
            self._used += max(_SMOOTHING, 1 / self._ended) * (tokens / most - self._used)

    def seconds(self, tokens: float) -> float:
        """What texts take that may get so many new tokens; 0 until enough has run to tell."""
        with self._lock:
            return tokens * self._used * self._seconds if self._ended >= _ENOUGH else 0.0
