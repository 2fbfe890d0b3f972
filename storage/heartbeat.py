"""Signs of life: a small object in the store that changes for as long as a process lives.

Whoever watches compares what it says with what it said, by a clock of its own; no clocks need to agree.
"""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress

from storage.artifacts import ArtifactStore

EVERY = 5.0  # seconds


class Heartbeat:
    """Beats while its block goes on, and stops however the process ends.

    Args:
        name: of this process among others.
        every: seconds between two beats. One that cannot be written is left out: the next may be.
    """

    def __init__(self, store: ArtifactStore, name: str, every: float = EVERY):
        self.folders, self.name, self.every = store.folders, name, every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat {name}", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        life, count = uuid.uuid4().hex, 0
        while True:
            count += 1
            with suppress(Exception):
                self.folders.fs.makedirs(f"{self.folders.root}/heartbeats", exist_ok=True)
                self.folders.fs.pipe_file(_path(self.folders.root, self.name), f"{life} {count}".encode())
            if self._over.wait(self.every):
                return


def last_beat(store: ArtifactStore, name: str) -> str | None:
    """What a process said last; None when it has said nothing, or cannot be heard."""
    with suppress(Exception):
        return store.folders.fs.cat_file(_path(store.folders.root, name)).decode()
    return None


def _path(root: str, name: str) -> str:
    return f"{root}/heartbeats/{name}"
