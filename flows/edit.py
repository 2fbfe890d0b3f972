"""The main flow: prepare → statistics → targets → write → evaluate → publish, each a Prefect task with a state of its own.

Tasks hand references to artefacts to one another, never tensors. A task whose artefact was there already ends in the state *Cached*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

from prefect import State, flow, get_client, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Completed, Crashed, Failed
from pydantic import Field

from flows import earlier, shown, stages
from flows.job import Job, check_out
from flows.limits import Held, Limits, broken, read_limits
from flows.lock import holding
from flows.progress import REPORTER
from flows.record import LOST
from flows.report import MOMENTS, figures, model_card
from flows.rerun import CONTINUES, Continuation, home_option
from flows.workbench import Ref, Workbench
from storage import next_attempt


def stage(do: Callable[..., Ref], run_name: str) -> Callable[..., Ref]:
    """A stage as a Prefect task: named after the function, its run after `run_name`, its state *Cached* where nothing had to be done."""

    @task(name=do.__name__, task_run_name=run_name, cache_policy=NO_CACHE, persist_result=False)
    @wraps(do)
    def run(*args: Any, **kwargs: Any) -> State[Ref]:
        ref = do(*args, **kwargs)
        return Completed(name="Cached" if ref.cached else "Completed", message=f"{ref.kind} {ref.key[:12]}", data=ref)

    @wraps(do)
    def call(*args: Any, **kwargs: Any) -> Ref:
        return run(*args, **kwargs, return_state=True).result()  # type: ignore[call-overload]

    return call


prepare = stage(stages.prepare, "prepare")
statistics = stage(stages.statistics, "statistics")
targets = stage(stages.targets, "targets {batch:04d}")
write = stage(stages.write, "write {batch:04d}")
evaluate = stage(stages.evaluate, "evaluate {moment} {batch:04d}")
perplexity = stage(stages.perplexity, "perplexity {moment}")
publish = stage(stages.publish, "publish")
hold = stage(stages.hold, "hold")
evaluate_earlier = stage(earlier.evaluate_earlier, "evaluate earlier {moment}")


def run_name() -> str:
    """Model, method and how many requests were asked for; `prepare` finds out how many there are."""
    asked = Job.make(**flow_run.parameters)
    return shown.run_name(asked, asked.limit)


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
    limits: Limits = Limits(),  # noqa: B008 (frozen)
    wait: bool = False,
    settings: dict[str, Any] = {},  # noqa: B006 (Prefect hands over a copy)
    home: str = ".metake",
) -> dict[str, Any] | State[Held]:
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
        limits: Quality gate, in per cent. A version that breaks a limit is recorded and not published, and the run ends as Held.
        wait: Wait for another run that writes to the same folder, instead of refusing.
        settings: Any other hyper-parameter, by name.
        home: Folder of the artefacts and the database.
    """
    job, here = Job.make(**flow_run.parameters), str(flow_run.id)
    run = CONTINUES.get() or Continuation(here, None)
    bench = Workbench(job, run_id=run.run_id, name=str(flow_run.name), reporter=REPORTER.get(), force=run.force)
    say = _saying(bench)
    check_out(Path(job.out))
    with holding(job.out, f"{bench.name}, {bench.run_id}", wait=job.wait, say=say):
        try:
            result = _run(bench, run, here, say)
        except Held as held:
            shown.announce("held", held.result, limits=dict(job.limits), broken=list(held.broken))
            return Failed(name="Held", message=str(held), data=held)
    shown.announce("published", result, limits=dict(job.limits))
    return result


def _run(bench: Workbench, run: Continuation, here: str, say: Callable[[str], None]) -> dict[str, Any]:
    """The run itself, from its row in the record to the published version. Raises Held where that is not published."""
    job = bench.job
    bench.record.attempt = next_attempt(bench.store, run.run_id, "started")
    facts = {
        "prefect_run_id": here,
        "arguments": job.arguments(),
        "name": bench.name,
        "method": job.method,
        "mode": job.mode,
        "source": job.requests,
        "out": str(Path(job.out).absolute()),
    }
    with bench.record.run(facts, job.seed) as row:
        _mark_crashed([*bench.record.lost, *([run.prefect_run_id] if run.prefect_run_id else [])])
        prepare(bench, job.check())
        bench.name = shown.name_and_tag(job, len(bench.plan.requests))
        row.update(name=bench.name, model=bench.plan.model["fingerprint"], settings=bench.plan.settings.to_dict())
        bench.record.write("planned", {"runs": [row]})  # what a killed run started from is known to whoever goes on with it
        bench.done = shown.Progress(len(bench.batches))
        say(
            f"{len(bench.plan.requests)} requests in {len(bench.batches)} batches"
            + (f", {len(bench.plan.rejected)} rows set aside" if bench.plan.rejected else "")
        )
        known = statistics(bench)
        say(f"statistics: {_took(bench, 'statistics')}")
        limits = read_limits(job.limits)
        facts_before = earlier.earlier_facts(bench) if limits.max_earlier_lost is not None else []
        asked = [evaluate_earlier(bench, known, "before", facts_before)] if facts_before else []
        deltas, measured = _edit(bench, known, say)
        asked += [evaluate_earlier(bench, known, "after", facts_before, deltas)] if facts_before else []
        result = _result(bench, measured)
        found = [stages.metrics(bench, [ref]) for ref in asked]
        broken_limits = broken(limits, result["numbers"], earlier.lost(found[0], found[1], limits.metric) if found else (0, 0))
        card = model_card(result, bench.plan.settings.to_dict())
        held = bool(broken_limits) and not run.publish_anyway
        version = hold(bench, known, deltas) if held else publish(bench, known, deltas, card)
        result["version"] = row["version"] = stages.version_of(bench.store.get(version.kind, version.key))
        shown.artifacts(result, card)
        if held:
            raise Held(result, broken_limits, home_option(job.home))
        if broken_limits:
            row["message"] = f"published although {'; '.join(broken_limits)}"
        say(f"publish: {_took(bench, 'publish')}")
    return result


def _edit(bench: Workbench, known: Ref, say: Callable[[str], None]) -> tuple[list[Ref], dict[str, list[dict[str, Any]]]]:
    """Learns and writes every batch, measuring at the three moments. Returns the deltas in order and the metric rows of each moment."""
    order, measure = range(len(bench.batches)), bench.job.evaluate
    refs: dict[str, list[Ref]] = {moment: [] for moment in MOMENTS}
    if measure:
        refs["before"] = [perplexity(bench, known, "before"), *(evaluate(bench, known, "before", b) for b in order)]
        say(f"before: {_took(bench, 'perplexity_before', *(f'evaluate_before {b}' for b in order))}")
    deltas: list[Ref] = []
    if bench.job.mode == "simultaneous":
        learned = []
        for b in order:
            learned.append(targets(bench, known, b))
            say(f"batch {b + 1} of {len(order)}: targets {_took(bench, f'targets {b}')}")
        deltas = [write(bench, known, b, learned) for b in order]
        say(f"joint write: {_took(bench, *(f'write {b}' for b in order))}")
    for b in order:
        if bench.job.mode == "sequential":
            deltas.append(write(bench, known, b, [targets(bench, known, b, deltas)], deltas))
        if measure:
            refs["at_write"].append(evaluate(bench, known, "at_write", b, deltas))
        if bench.job.mode == "sequential":
            say(_batch_line(bench, b, refs["at_write"]))
    if measure:
        refs["after"] = [*(evaluate(bench, known, "after", b, deltas) for b in order), perplexity(bench, known, "after", deltas)]
        say(f"after: {_took(bench, 'perplexity_after', *(f'evaluate_after {b}' for b in order))}")
    return deltas, {moment: stages.metrics(bench, found) for moment, found in refs.items() if found}


def _batch_line(bench: Workbench, b: int, at_write: Sequence[Ref]) -> str:
    times = ", ".join(
        f"{name.replace('_', ' ')} {_took(bench, f'{name} {b}')}"
        for name in ("targets", "write", "evaluate_at_write")
        if f"{name} {b}" in bench.seconds
    )
    line = f"batch {b + 1} of {len(bench.batches)}: {times}"
    rows = stages.metrics(bench, at_write[-1:])
    success = [row["value"] for row in rows if row["name"] == "efficacy_success"]
    return f"{line}; {100 * sum(success) / len(success):.0f} % of its facts hold" if success else line


def _took(bench: Workbench, *names: str) -> str:
    """Time of stages that were done, or that nothing had to be."""
    times = [seconds for name in names if (seconds := bench.seconds[name]) is not None]
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
