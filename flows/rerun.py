"""A run gone on with: the same id in the record, the same arguments, and only what is missing done.

Everything that a run makes is an artefact named by what it was made from, so going on with a run is asking for the same again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from flows.names import run_named
from metake.errors import InputError
from storage import Database

#: What `metake rerun --from` can force. What versions are made from (statistics, targets, deltas) is never made a second time under its
#: name: on hardware that rounds differently, every version that rests on it could not be made again.
FORCED = {"evaluate": frozenset({"evaluate", "perplexity", "publish"}), "publish": frozenset({"publish"})}


@dataclass(frozen=True)
class Continuation:
    """The run that is gone on with.

    Attributes:
        run_id: its id in the record, which stays.
        prefect_run_id: its last attempt's flow run.
        force: stages that are done again although their artefacts are there, by the first word of their names.
    """

    run_id: str
    prefect_run_id: str | None
    force: frozenset[str] = frozenset()


#: The run that the flow goes on with, where `metake rerun` started it.
CONTINUES: ContextVar[Continuation | None] = ContextVar("continues", default=None)


def continuing(database: Database, name: str, first: str | None = None) -> tuple[Mapping[str, Any], Continuation]:
    """The arguments of a recorded run, and what goes on with it.

    Args:
        name: the run, as `flows.names.run_named` takes it.
        first: the stage to force, with what comes after it; a key of `FORCED`.

    Raises:
        InputError: no run, or several, go by that name; or the record does not say what the run was asked for.
    """
    run_id = run_named(database, name)
    (row,) = database.query("SELECT name, method, prefect_run_id, arguments FROM runs WHERE run_id = ?", [run_id])
    if row["arguments"] is None:
        undone = database.query("SELECT count(*) FROM undos WHERE run_id = ?", [run_id]).rows[0][0]
        fix = "type the undo or redo again" if undone else "it is of an earlier release: type its `metake edit` again"
        raise InputError(f"the record does not hold what {row['name'] or run_id} was asked for", place="RUN", fix=fix)
    return json.loads(row["arguments"]), Continuation(run_id, row["prefect_run_id"], FORCED[first] if first else frozenset())
