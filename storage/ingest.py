"""Putting one part into an open database: the rules that make the record the same in whatever order its parts arrive.

1. A part is ingested once: its name is in the ledger `parts`, in the same transaction as its rows.
2. `edits` and `metrics` belong to a slot, `<run_id>/<stage>-<batch>`. A later attempt at a slot replaces what earlier attempts
   wrote there, table by table; a table that the later part does not carry is left alone. So redoing a stage never duplicates
   a row. `stages` keeps every attempt.
3. Where two parts tell about one thing, one row stays. Of `requests`, `models` and `artifacts`, which are named by their
   content, the first written; of `runs`, `environment`, `intake` and one place in a batch (`edits`), the last written. Whole rows win,
   not single columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import duckdb

    from storage.parts import Part

OF_A_SLOT = ("edits", "metrics")
FIRST_STAYS = {"requests": ("request_id",), "models": ("fingerprint",), "artifacts": ("key",)}
LAST_STAYS = {"intake": ("out", "sha256"), "runs": ("run_id",), "environment": ("run_id",), "edits": ("run_id", "batch", "position")}


def ingest(connection: duckdb.DuckDBPyConnection, part: Part) -> bool:
    """Adds a part's rows inside the caller's transaction. Returns False, changing nothing, when the part is in the ledger already."""
    if connection.execute("SELECT 1 FROM parts WHERE part = ?", [part.name]).fetchone():
        return False
    for table, rows in part.tables.items():
        if table in OF_A_SLOT and _superseded(connection, part, table):
            continue
        connection.register("incoming", rows)
        _insert(connection, part, table)
        connection.unregister("incoming")  # after a failure it goes with the caller's transaction, which takes no more statements
    counts = {table: rows.num_rows for table, rows in part.tables.items()}
    connection.execute(
        "INSERT INTO parts VALUES (?, ?, ?, ?, ?, ?, ?)",
        [part.name, part.run_id, part.slot, part.attempt, part.written_at, part.sha256, counts],
    )
    return True


def _superseded(connection: duckdb.DuckDBPyConnection, part: Part, table: str) -> bool:
    """Whether a later attempt at the slot is in already; otherwise what earlier attempts left in the table goes."""
    others = connection.execute(
        "SELECT part, attempt FROM parts WHERE run_id = ? AND slot = ? AND json_exists(rows, ?)", [part.run_id, part.slot, f"$.{table}"]
    ).fetchall()
    if any(attempt > part.attempt for _, attempt in others):
        return True
    for earlier, _ in others:
        connection.execute(f"DELETE FROM {table} WHERE part = ?", [earlier])
    return False


def _insert(connection: duckdb.DuckDBPyConnection, part: Part, table: str) -> None:
    key = FIRST_STAYS.get(table) or LAST_STAYS.get(table)
    rest = ""
    if key and connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone():  # an empty table, as in every trial, has no such row
        same = " AND ".join(f"{table}.{column} = incoming.{column}" for column in key)
        losing = "<" if table in LAST_STAYS else ">"
        connection.execute(
            f"""DELETE FROM {table} USING incoming, parts
                WHERE {same} AND parts.part = {table}.part AND (parts.written_at, parts.part) {losing} (?, ?)""",
            [part.written_at, part.name],
        )
        rest = f"WHERE NOT EXISTS (SELECT 1 FROM {table} WHERE {same})"
    once = f"DISTINCT ON ({', '.join(key)})" if key and table in FIRST_STAYS else ""
    connection.execute(f"INSERT INTO {table} BY NAME SELECT {once} *, ? AS part FROM incoming {rest}", [part.name])
