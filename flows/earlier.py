"""What earlier runs wrote into the model that a run starts from, and how much of it the run loses."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows.lineage import lineage, requests_of, with_batches
from flows.record import Rows
from flows.workbench import Ref, Workbench, code_digest
from metake.requests import Request
from storage import Database

PREFIX = "earlier_"  # of the metrics' names, so that no view takes them for those of the run's own facts


def earlier_facts(bench: Workbench) -> list[Request]:
    """The facts that are in the model by earlier runs and that this run leaves alone, the last answer to each prompt.

    They are known where the model is a version in the record; for any other model there are none.
    """
    database, start = Database(bench.database), bench.plan.model["fingerprint"]
    if not database.query("SELECT 1 FROM models WHERE fingerprint = ? AND parent IS NOT NULL", [start]).rows:
        return []
    segments = with_batches(bench.store, lineage(database, start))
    ids = [id for segment in segments for batch in segment.batches for id in batch.requests]
    written = requests_of(database, list(dict.fromkeys(ids)))
    changed = {(r.subject, r.prompt) for r in bench.plan.requests}
    last = {(written[id].subject, written[id].prompt): written[id] for id in ids}
    return [r for fact, r in last.items() if fact not in changed]


def evaluate_earlier(bench: Workbench, statistics: Ref, moment: str, facts: Sequence[Request], deltas: Sequence[Ref] = ()) -> Ref:
    """Asks the model that `deltas` left for the facts of earlier runs."""
    meaning = {
        "model": bench.plan.model["fingerprint"],
        "dtype": bench.job.dtype,
        "deltas": [d.key for d in deltas],
        "facts": [r.content_id for r in facts],
        "batch_tokens": bench.plan.settings.batch_tokens,
        "code": code_digest(),
    }

    def build(folder: Path, progress: Any) -> None:
        from metake.evaluation import evaluate

        bare = [replace(r, rephrases=(), neighbours=()) for r in facts]
        ids = {b.content_id: r.content_id for b, r in zip(bare, facts, strict=True)}
        with bench.as_saved(statistics, deltas) as lm:
            found = evaluate(lm, bare, batch_tokens=bench.plan.settings.batch_tokens, progress=progress)
        rows = [{**row, "request_id": ids[row["request_id"]], "name": PREFIX + row["name"]} for row in found]
        (folder / "metrics.json").write_text(json.dumps(rows), encoding="utf-8")

    def rows(folder: Path) -> Rows:
        return {"metrics": [{**row, "moment": moment} for row in json.loads((folder / "metrics.json").read_text(encoding="utf-8"))]}

    return bench.make(f"evaluate_earlier_{moment}", "answers", meaning, build, rows=rows)


def lost(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], metric: str) -> tuple[int, int]:
    """Of the facts that held before, how many do not after, and how many they were. A fact holds when its efficacy is at least 1/2."""
    name = f"{PREFIX}efficacy_{metric}"
    held = {row["request_id"] for row in before if row["name"] == name and row["value"] >= 0.5}
    gone = {row["request_id"] for row in after if row["name"] == name and row["value"] < 0.5}
    return len(held & gone), len(held)
