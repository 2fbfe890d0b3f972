"""The main flow: prepare → statistics → targets → write → evaluate → publish, each a Prefect task with a state of its own.

`flows.course` lays out the stages between the first and the last; they are done in this process, or by workers (`flows.dispatch`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from prefect import flow, get_client, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Crashed
from pydantic import Field

from flows import stages, tasks
from flows.course import Slot, Step, course, of_moment
from flows.dispatch import spread
from flows.job import Job
from flows.progress import REPORTER
from flows.record import LOST
from flows.report import MOMENTS, figures, heading, markdown, model_card
from flows.rerun import CONTINUES, Continuation
from flows.workbench import Ref, Workbench
from storage import next_attempt


def run_name() -> str:
    """Model, method and how many requests were asked for."""
    given = flow_run.parameters
    asked = Job.make(**given)
    return "-".join([asked.model_name, asked.method, *([str(asked.limit)] if asked.limit else [])])


Count = Annotated[int, Field(ge=1)]


# The descriptions of its arguments are those of the form in Prefect's UI.
@flow(name="edit", flow_run_name=run_name, log_prints=False, persist_result=False)
def edit(
    requests: str | None = None,
    model: str | None = None,
    method: Literal["metake", "iterated", "alphaedit", "alphaedit_blue", "memit", "memit_blue", "rect", "prune", "rome", "ft"] = "metake",
    mode: Literal["sequential", "simultaneous"] = "sequential",
    batch_size: Count = 100,
    out: str = "edited",
    layout: str = "auto",
    limit: Count | None = None,
    layers: list[int] | None = None,
    tokens: Count | None = None,
    corpus: str | None = None,
    heldout: str | None = None,
    seed: int = 0,
    dtype: Literal["float32", "bfloat16", "float64"] = "float32",
    device: str = "cpu",
    on_bad_row: Literal["stop", "quarantine"] = "stop",
    evaluate: bool = True,
    chat: bool = False,
    trust_remote_code: bool = False,
    preset: str | None = None,
    workers: str | None = None,
    patience: Count = 600,
    settings: dict[str, Any] = {},  # noqa: B006 (Prefect hands over a copy)
    home: str = ".metake",
) -> dict[str, Any]:
    """Corrects facts in a language model's weights, records what was done, and publishes the edited model.

    Args:
        requests: File, datasets folder or hub id with the edit requests. Empty: the bundled ones.
        model: Folder or hub id of the model. Empty: the bundled one.
        method: How targets are learned and written.
        mode: sequential: each batch is learned on the model the last one left. simultaneous: all on the base model, then one joint write.
        batch_size: Requests that are learned and written together.
        out: Folder for the edited model; one that an earlier run made is replaced.
        layout: How the requests are laid out: plain, counterfact-flat, counterfact-full, knowedit, zsre-mend; auto recognises it.
        limit: Take only the first so many requests.
        layers: Layers to edit, ascending. Empty: the model's preset.
        tokens: Tokens of text for the statistics. Empty: the model's preset, or until they have converged.
        corpus: Text for the statistics, several sources joined by commas. Empty: the bundled text.
        heldout: Text for perplexity. Empty: the bundled text.
        seed: Seed of whatever is random.
        dtype: Precision to compute in.
        device: cpu, cuda or cuda:0.
        on_bad_row: stop, or quarantine: set bad rows aside in the record and go on.
        evaluate: Measure before, at write and after.
        chat: Prompts are what a user says, in the chat template of an instruct model.
        trust_remote_code: Run Python code that the model's folder brings.
        preset: Preset file of metake tune. Empty: the model's own preset, or the defaults.
        workers: Deployment whose workers do all but checking and publishing: targets-shard/targets-shard. Empty: this process does all.
        patience: Seconds to wait for a worker, or for a server that does not answer, before the run fails.
        settings: Any other hyper-parameter, by name.
        home: Folder of the artefacts and the database.
    """
    job, here = Job.make(**flow_run.parameters), str(flow_run.id)
    run = CONTINUES.get() or Continuation(here, None)
    bench = Workbench(job, run_id=run.run_id, name=str(flow_run.name), reporter=REPORTER.get(), force=run.force)
    bench.record.attempt = next_attempt(bench.store, run.run_id)
    say = _saying(bench)
    facts = {
        "prefect_run_id": here,
        "arguments": job.arguments(),
        "name": bench.name,
        "method": method,
        "mode": mode,
        "source": job.requests,
        "out": str(Path(out).absolute()),
    }
    with bench.record.run(facts, seed) as row:
        _mark_crashed([*bench.record.lost, *([run.prefect_run_id] if run.prefect_run_id else [])])
        tasks.prepare(bench, job.check())
        row.update(model=bench.plan.model["fingerprint"], settings=bench.plan.settings.to_dict())
        say(
            f"{len(bench.plan.requests)} requests in {len(bench.batches)} batches"
            + (f", {len(bench.plan.rejected)} rows set aside" if bench.plan.rejected else "")
        )
        steps = course(bench)
        refs = spread(bench, steps, say) if job.workers else _here(bench, steps, say)
        result = _result(bench, {moment: stages.metrics(bench, found) for moment in MOMENTS if (found := of_moment(refs, moment))})
        deltas = [refs["write", b] for b in range(len(bench.batches))]
        version = tasks.publish(bench, refs["statistics", None], deltas, model_card(result, bench.plan.settings.to_dict()))
        result["version"] = row["version"] = stages.version_of(bench.store.get(version.kind, version.key))
        say(f"publish: {_took(bench, ('publish', None))}")
    if result["numbers"]:
        create_markdown_artifact(markdown(result), key="edit-result", description=heading(result))
    return result


def _here(bench: Workbench, steps: Mapping[Slot, Step], say: Callable[[str], None]) -> dict[Slot, Ref]:
    """Does every step in this process, and says one line per batch."""
    order = range(len(bench.batches))
    refs: dict[Slot, Ref] = {}

    def do(*slots: Slot) -> list[Slot]:
        """Does those that are steps of this run, and returns them."""
        ours = [slot for slot in slots if slot in steps]
        for slot in ours:
            refs[slot] = steps[slot].do(bench, tasks)
        return ours

    say(f"statistics: {_took(bench, *do(('statistics', None)))}")
    if done := do(("perplexity_before", None), *(("evaluate_before", b) for b in order)):
        say(f"before: {_took(bench, *done)}")
    if bench.job.mode == "simultaneous":
        for b in order:
            say(f"batch {b + 1} of {len(order)}: targets {_took(bench, *do(('targets', b)))}")
        say(f"joint write: {_took(bench, *do(*(('write', b) for b in order)))}")
        do(*(("evaluate_at_write", b) for b in order))
    else:
        for b in order:
            done = do(("targets", b), ("write", b), ("evaluate_at_write", b))
            say(
                f"batch {b + 1} of {len(order)}: "
                + ", ".join(f"{slot[0].replace('_', ' ')} {_took(bench, slot)}" for slot in done)
                + _hold(bench, refs, b)
            )
    if done := do(*(("evaluate_after", b) for b in order), ("perplexity_after", None)):
        say(f"after: {_took(bench, *done)}")
    return refs


def _hold(bench: Workbench, refs: Mapping[Slot, Ref], b: int) -> str:
    """How many of a batch's facts hold, where that was measured."""
    rows = stages.metrics(bench, [refs["evaluate_at_write", b]] if ("evaluate_at_write", b) in refs else [])
    success = [row["value"] for row in rows if row["name"] == "efficacy_success"]
    return f"; {100 * sum(success) / len(success):.0f} % of its facts hold" if success else ""


def _took(bench: Workbench, *slots: Slot) -> str:
    """Time of stages that were done, or that nothing had to be."""
    times = [seconds for slot in slots if (seconds := bench.seconds[slot]) is not None]
    return f"{sum(times):.1f} s" if times else "cached"


def _mark_crashed(runs: Sequence[str]) -> None:
    """Prefect would show a run whose process was killed as running for ever."""
    with get_client(sync_client=True) as client:
        for run in runs:
            with suppress(ObjectNotFound):  # another server's
                if client.read_flow_run(UUID(run)).state_type == StateType.RUNNING:
                    client.set_flow_run_state(UUID(run), Crashed(message=LOST))


def _result(bench: Workbench, measured: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    job = bench.job
    return {
        "run_id": bench.run_id,
        "name": bench.name,
        "method": job.method,
        "mode": job.mode,
        "edits": len(bench.plan.requests),
        "rejected": len(bench.plan.rejected),
        "batches": len(bench.batches),
        "base": bench.plan.model["fingerprint"],
        "base_name": job.model_name,
        "out": job.out,
        "database": str(bench.database),
        "example": {"subject": bench.plan.requests[0].subject, "prompt": bench.plan.requests[0].prompt},
        "numbers": figures(measured),
    }


def _saying(bench: Workbench) -> Callable[[str], None]:
    """Tells the terminal and Prefect's log, one line per batch."""
    log = get_run_logger()

    def say(text: str) -> None:
        bench.reporter.line(text)
        log.info(text)

    return say
