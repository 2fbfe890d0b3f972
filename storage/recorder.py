"""The recorder: commits parts to the database, and makes the database again from the parts.

Only the coordinating flow has one. Each commit opens the file, ingests in one transaction and closes it, so that readers in
other processes wait for moments only. Killed at any time, a recorder leaves the database as it was before the commit or as it
is after; the parts not in it can be committed again (`catch_up`).
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from storage.artifacts import ArtifactStore
from storage.connect import opened
from storage.errors import DatabaseBusy, DatabaseUnreadable
from storage.ingest import ingest
from storage.parts import Part, Rows, part_names, read_part, write_part, written_at
from storage.schema import check_version, migrate

READ_AT_ONCE = 64  # parts held in memory while a database is rebuilt


class Recorder:
    """Commits parts from a store to a database.

    Example:
        recorder = Recorder(Path("metake.duckdb"), store)
        recorder.record("r1/prepare-0-1", {"runs": [run], "requests": requests})    # by the coordinator
        recorder.commit([name_returned_by_a_worker])                                # write_part was called there

    Args:
        database: the DuckDB file; made, with its folder, when first written to.
        store: where the parts are.
        wait: seconds to wait for other processes to close the database.
    """

    def __init__(self, database: str | Path, store: ArtifactStore, *, wait: float = 60.0):
        self.database = Path(database)
        self.store = store
        self.wait = wait

    def record(self, name: str, rows: Rows) -> bool:
        """Writes rows as a part and commits it; see `storage.parts.write_part` for both arguments and `commit` for the rest."""
        return bool(self.commit([write_part(self.store, name, rows)]))

    def commit(self, names: Iterable[str]) -> int:
        """Ingests parts in one transaction; parts that are in already are passed over. Returns how many were new.

        Raises: ArtifactMissing or ArtifactDamaged, naming the file, before anything is written; DatabaseBusy; DatabaseTooNew.
        """
        parts = [read_part(self.store, name) for name in dict.fromkeys(names)]
        return self._ingest(parts)

    def catch_up(self, run_id: str | None = None) -> int:
        """Commits all parts in the store (or of one run) that the database lacks, as after a kill. Returns how many were new."""
        return self.commit(self.pending(run_id))

    def pending(self, run_id: str | None = None) -> list[str]:
        """Names of the parts in the store (or of one run) that the database lacks."""
        self.database.parent.mkdir(parents=True, exist_ok=True)
        with opened(self.database, read_only=False, wait=self.wait) as connection:
            migrate(connection)
            known = {name for (name,) in connection.execute("SELECT part FROM parts").fetchall()}
        return [name for name in part_names(self.store, run_id) if name not in known]

    def _ingest(self, parts: list[Part]) -> int:
        import duckdb

        self.database.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.wait
        while True:
            with opened(self.database, read_only=False, wait=self.wait) as connection:
                try:
                    migrate(connection)
                    connection.execute("BEGIN")
                    new = ingest(connection, parts)
                    connection.execute("COMMIT")
                    return new
                except duckdb.TransactionException as error:  # another thread of this process committed meanwhile
                    if time.monotonic() > deadline:
                        raise DatabaseBusy(f"{self.database} kept changing: {error}.", fix="Use one recorder per database.") from error
            time.sleep(0.02)


def rebuild(database: str | Path, store: ArtifactStore, *, wait: float = 60.0) -> int:
    """Makes the database again from all parts in the store, row for row (not in the same order). Returns the number of parts.

    The new file takes the old one's place at the end; until then the old one, if it can be opened, is kept locked. Parts that a
    run writes meanwhile may be missing: `Recorder.catch_up` adds them.

    Raises: ArtifactDamaged, naming the file, DatabaseBusy, DatabaseTooNew: the old file is then untouched.
    """
    database = Path(database)
    database.parent.mkdir(parents=True, exist_ok=True)
    fresh = database.with_name(f".{database.name}.{uuid.uuid4().hex}")
    recorder = Recorder(fresh, store, wait=wait)
    with ExitStack() as held:
        if database.exists():
            with suppress(DatabaseUnreadable):  # the usual reason for a rebuild
                check_version(held.enter_context(opened(database, read_only=False, wait=wait)))
                for leftover in database.parent.glob(f".{database.name}.*"):  # of a rebuild that was killed
                    leftover.unlink()
        try:
            names = sorted(part_names(store), key=lambda name: (written_at(store, name), name))
            recorder.commit([])
            for start in range(0, len(names), READ_AT_ONCE):
                recorder.commit(names[start : start + READ_AT_ONCE])
            held.close()
            database.with_name(database.name + ".wal").unlink(missing_ok=True)  # it belongs to the old file
            os.replace(fresh, database)
        finally:
            fresh.unlink(missing_ok=True)
            fresh.with_name(fresh.name + ".wal").unlink(missing_ok=True)
    return len(names)
