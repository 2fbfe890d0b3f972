"""Why one edit of a run succeeded or failed, measured on demand from the run's artefacts and told in words and numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flows.lineage import Batch, Segment, lineage, requests_of, with_batches
from flows.names import requests_named, run_named
from flows.show import columns_text
from flows.versions import Home, add_deltas, load_base, settled
from metake.errors import InputError
from metake.requests import Request
from metake.settings import Settings
from storage import ArtifactStore, Database

if TYPE_CHECKING:
    from metake.delta import Delta
    from metake.diagnosis import Diagnosis, Said
    from metake.model import LanguageModel


@dataclass(frozen=True)
class Explanation:
    """A diagnosis with what the record holds of the edit.

    Attributes:
        run: its row in `runs`. edit: its row in `edit_history`. batches: how many the run wrote.
        subjects: of the requests that the diagnosis names, by content id.
    """

    run: Mapping[str, Any]
    edit: Mapping[str, Any]
    batches: int
    request: Request
    settings: Settings
    diagnosis: Diagnosis
    subjects: Mapping[str, str]


def explain(home: Home, run: str, request: str) -> Explanation:
    """Finds out what became of a request in a run.

    Args:
        run, request: as people name them (`flows.names`).

    Raises:
        InputError: a name is not known or not clear, the row was set aside, or the base is not where it was.
        ArtifactMissing, ArtifactDamaged: a delta or a target is gone, cut short or altered; the message names the file.
    """
    from metake.diagnosis import diagnose
    from metake.targets import Targets

    database, store = home.database, home.store
    row = next(iter(database.query("SELECT * FROM runs WHERE run_id = ?", [run_named(database, run)])))
    edit = _edit(database, row["run_id"], request)
    segments = with_batches(store, _segments(database, row))
    here, place = _place(segments, edit)
    segment, batch = segments[here], segments[here].batches[place]
    key = batch.targets[batch.place]
    learned = store.manifest("targets", key)["meaning"]
    settings = Settings(**{**learned["settings"], "layers": tuple(learned["settings"]["layers"])})
    column = batch.requests.index(edit["request_id"])
    wanted = requests_of(database, [edit["request_id"]])[edit["request_id"]]
    others = [b for b in segment.batches if b is not batch]
    found = diagnose(
        _model_before(home, segments, here, place, learned["dtype"]),
        wanted,
        Targets.load(store.get("targets", key)).of([column]),
        _delta(store, batch),
        column,
        settings,
        together=[_delta(store, b) for b in others] if segment.joint else (),
        later=() if segment.joint else _later(store, segment.batches[place + 1 :], edit["batch"] + 1),
    )
    near = [n.request for n in found.loss.nearest] if found.loss else []
    subjects = {id: r.subject for id, r in requests_of(database, near).items()}
    return Explanation(row, edit, len(segment.batches), wanted, settings, found, subjects)


# -- where it is -----------------------------------------------------------------------------------------------------------------------
def _edit(database: Database, run_id: str, name: str) -> dict[str, Any]:
    """The request's row in `edit_history`, by the name that a person gave it."""
    rows = list(database.query("SELECT * FROM edit_history WHERE run_id = ?", [run_id]))
    for row in rows:
        if row["status"] == "rejected" and name in (row["user_id"], row["request_id"]):
            place = row["place"] or "--request"
            raise InputError(f"'{name}' was set aside: {row['reason']}", place=place, fix="correct the row and edit again")
    (id,) = requests_named([(row["request_id"], row["user_id"]) for row in rows if row["status"] == "written"], [name])
    return next(row for row in rows if row["request_id"] == id)


def _segments(database: Database, run: Mapping[str, Any]) -> list[Segment]:
    """What led to the run's version; of a run that made none, the batches that it wrote."""
    if run["version"]:
        return lineage(database, run["version"])
    written = database.query(
        "SELECT artifact FROM stage_status WHERE run_id = ? AND stage = 'write' AND status IN ('completed', 'cached') ORDER BY batch",
        [run["run_id"]],
    )
    return [*lineage(database, run["model"]), Segment(run["model"], "", run["run_id"], tuple(row[0] for row in written.rows))]


def _place(segments: Sequence[Segment], edit: Mapping[str, Any]) -> tuple[int, int]:
    """The last segment and batch that hold the request."""
    for here, segment in reversed(list(enumerate(segments))):
        for place, batch in enumerate(segment.batches):
            if edit["request_id"] in batch.requests:
                return here, place
    problem = f"the run's version does not hold '{edit['subject']}'"
    raise InputError(problem, place="--request", fix="`metake history` shows what was written")


def _model_before(home: Home, segments: Sequence[Segment], here: int, place: int, dtype: str) -> LanguageModel:
    """The model on which a batch was learned: in a joint write, the one before all of its batches."""
    lm = load_base(home, segments, segments[0].model)
    for segment in segments[:here]:
        lm = add_deltas(home, lm, segment.deltas, first=segment is segments[0])
    if here:
        lm = settled(lm, dtype)
    return add_deltas(home, lm, () if segments[here].joint else segments[here].deltas[:place])


def _delta(store: ArtifactStore, batch: Batch) -> Delta:
    from metake.delta import Delta

    return Delta.load(store.get("delta", batch.delta))


def _later(store: ArtifactStore, batches: Sequence[Batch], first: int) -> Iterator[tuple[int, Delta]]:
    return ((number, _delta(store, batch)) for number, batch in enumerate(batches, first))


# -- JSON --------------------------------------------------------------------------------------------------------------------------------
RECORDED = ("gate", "planned", "predicted", "realised", "proxy_error", "steps", "final_loss", "stop_reason", "before", "at_write", "after")


def explanation_json(e: Explanation) -> str:
    """Names, what the record holds, the words, and every field of the diagnosis."""
    facts = {
        "run": e.run["run_id"],
        "name": e.run["name"],
        "method": e.run["method"],
        "mode": e.run["mode"],
        "batch": e.edit["batch"],
        "request": {"id": e.request.content_id, "user_id": e.request.id, "subject": e.request.subject, "prompt": e.request.prompt}
        | {"target_new": e.request.target_new, "target_true": e.request.target_true},
        "recorded": {name: e.edit[name] for name in RECORDED},
        "words": words(e),
        "diagnosis": asdict(e.diagnosis),
        "subjects": dict(e.subjects),
    }
    return json.dumps(_finite(facts), ensure_ascii=False, indent=1)


def _finite(value: Any) -> Any:
    """The value with null where JSON has no number."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


# -- words -------------------------------------------------------------------------------------------------------------------------------
def words(e: Explanation) -> list[str]:
    """Why, in sentences; the verdict first."""
    from metake import diagnosis

    d = e.diagnosis
    tell = {
        diagnosis.NO_TARGET: _no_target,
        diagnosis.NO_ROOM: _no_room,
        diagnosis.DISTURBED: _disturbed,
        diagnosis.LOST: _lost,
        diagnosis.KEPT: _kept,
    }[d.verdict]
    verdict = f"{d.verdict}, to batch {d.loss.batch}" if d.verdict == diagnosis.LOST and d.loss else d.verdict
    return [verdict[0].upper() + verdict[1:] + ".", *tell(e), *_other_prompts(e)]


def _no_target(e: Explanation) -> list[str]:
    d, s = e.diagnosis, e.settings
    if d.target is None:
        said = f"Fine-tuning has no target to put in: it trains the weight itself, and the trained weight says {_quoted(d.at_write)}."
        return [said, _learning(e), f"No weight may change by more than ε = {s.weight_bound:g}, in {s.steps} steps at most."]
    said = f"Even with the target that was learned put in at the subject, the model says {_quoted(d.target)}."
    opened = [f"So it does with a target learned alone and with the gate open: {_quoted(d.open_target)}."] if d.open_target else []
    if e.edit["stop_reason"] == "diverged":
        return [said, "Learning it diverged; its plan was set to zero and nothing was written for it."]
    edge, length = f"clamp {s.clamp:g} × ‖h‖ = {s.clamp * d.lengths.hidden:.3g}", _number(d.lengths.predicted)
    where = (
        f"The target lies on the trust region, {edge}: a larger clamp lets it go further."
        if d.lengths.clamped
        else f"The target, of length {length}, lies inside the trust region, {edge}: more steps or a larger learning_rate may move it."
    )
    return [said, *opened, _learning(e), where]


def _learning(e: Explanation) -> str:
    loss, stop = e.edit["final_loss"], e.settings.stop_loss
    return f"The loss ended at {_number(loss)} after {e.edit['steps']} steps, stopped by {e.edit['stop_reason']} (done below {stop:g})."


def _no_room(e: Explanation) -> list[str]:
    d, n = e.diagnosis, e.diagnosis.lengths
    if d.target and d.target.holds:
        first = f"The target works: put in at the subject, the model says {_quoted(d.target)}."
        gap = f"But the write realised {_percent(n.share)} of it, and {_number(n.aside)} across it; with that put in instead: "
        second = gap + f"{_quoted(d.realised)}."
    else:
        first = f"What the gate was predicted to let through does not do: with it put in, the model says {_quoted(d.target)}."
        second = f"A target learned alone and with the gate open does: {_quoted(d.open_target)}."
    cap = [f"The plan lies on the cap of amplification, {e.settings.amplification:g} × ‖h‖: it could not ask for more."] if n.capped else []
    cost = [f"The plan was also held back by write_cost = {e.settings.write_cost:g}."] if e.settings.write_cost else []
    return [first, second, _gates(e), *cap, *cost]


def _gates(e: Explanation) -> str:
    shown = ", ".join(f"layer {g.layer} {_percent(g.gate)}" for g in e.diagnosis.layers if g.gate is not None)
    return f"Gate of each layer, what it lets through of what it is asked for: {shown}." if shown else "This update has no gate to show."


def _disturbed(e: Explanation) -> list[str]:
    d, n = e.diagnosis, e.diagnosis.lengths
    said = f"the edited model says {_quoted(d.at_write)}."
    if d.realised.holds:
        first = f"What the write realised at the subject would do: put in alone, the model says {_quoted(d.realised)}. Yet {said}"
        other = max((t for t in d.tokens if not t.subject), key=lambda t: t.share, default=None)
        where = f"The subject's state moved by {_number(n.realised)}; elsewhere in the prompt the token most moved is "
        return [first, where + f"'{other.token}', by {other.distance:.3g} ({_percent(other.share)} of its length)." if other else ""]
    first = f"What was realised along the target would do: put in alone, the model says {_quoted(d.along)}. Yet {said}"
    other = f"Other facts of the same write put {_number(n.aside)} across it at the subject ({_number(n.realised)} realised in all)."
    return [first, other]


def _lost(e: Explanation) -> list[str]:
    d = e.diagnosis
    assert d.loss is not None
    later = next(step for step in d.later if step.batch == d.loss.batch)
    moved = f"That batch moved the state at the subject by {later.moved:.3g}, {_percent(later.along)} of what had been realised along it"
    back = "brings the answer back" if d.loss.restored.holds else "does not bring the answer back: other tokens were changed too"
    return [
        f"Right at write: {_quoted(d.at_write)}. After batch {d.loss.batch}: {_quoted(later.said)}.",
        f"{moved} ({_number(d.lengths.realised)}). Putting that state alone back {back}: {_quoted(d.loss.restored)}.",
    ]


def _kept(e: Explanation) -> list[str]:
    d = e.diagnosis
    already = ["The model said so before the write."] if d.before.holds else []
    last = d.later[-1].said if d.later else d.at_write
    after = f"; after {_count(len(d.later), 'later batch', 'later batches')}: {_quoted(last)}" if d.later else ""
    between = [f"In between it did not hold, first after batch {d.loss.batch}."] if d.loss else []
    return [*already, f"Right at write: {_quoted(d.at_write)}{after}.", *between]


def _other_prompts(e: Explanation) -> list[str]:
    """Which rephrases fail and which neighbours were broken, and when."""
    found: dict[tuple[str, str], list[str]] = {}
    for asked in e.diagnosis.prompts[1:]:
        said = "fails" if asked.kind == "rephrase" else "was broken"
        if asked.kind == "neighbour" and not asked.before.holds:
            continue
        if not asked.at_write.holds:
            found.setdefault((asked.kind, f"{said} at write"), []).append(str(asked.number))
        elif not asked.after.holds:
            found.setdefault((asked.kind, f"{said} by later batches"), []).append(str(asked.number))
    return [f"{kind.capitalize()} {', '.join(numbers)} {what}." for (kind, what), numbers in found.items()]


def _quoted(said: Said | None) -> str:
    if said is None:
        return "nothing"
    against = "" if said.other is None else f" against {said.other:.2f}"
    return f"“{said.text.strip()}” (log P new {said.wanted:.2f}{against})"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.3g} %"


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


# -- the page ----------------------------------------------------------------------------------------------------------------------------
def explanation_text(e: Explanation) -> str:
    """A page: the verdict with its reasons, then the measurements."""
    r, edit = e.request, e.edit
    place = f"batch {edit['batch']}, {_count(e.batches, 'batch', 'batches')} in all"
    head = [
        f"request   {r.id}  {r.content_id[:12]}  {r.subject}",
        f"fact      {r.prompt} → {r.target_new}" + (f" (before: {r.target_true})" if r.target_true else ""),
        f"run       {e.run['name']}, {e.run['method']}, {e.run['mode']}, {place}",
    ]
    parts = ["\n".join(head), "\n".join(words(e)), _answers(e), _plan(e), _layers(e), _nearest(e), _prompts(e)]
    return "\n\n".join(part for part in parts if part)


def _answers(e: Explanation) -> str:
    d = e.diagnosis
    steps = [
        ("before the batch", d.before),
        ("target put in", d.target),
        ("target learned with the gate open, put in", d.open_target),
        ("realised put in", d.realised),
        ("realised along the target, put in", d.along),
        ("at write", d.at_write),
        *((f"after batch {later.batch}", later.said) for later in d.later),
    ]
    moved = {f"after batch {later.batch}": (later.moved, _percent(later.along)) for later in d.later}
    rows = [
        (what, _log(said.wanted), _log(said.other), "yes" if said.holds else "no", said.text.strip(), *moved.get(what, (None, None)))
        for what, said in steps
        if said
    ]
    return "Answers\n" + columns_text(("", "log P new", "log P true", "holds", "says", "moved", "along"), rows)


def _log(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _plan(e: Explanation) -> str:
    n, edit = e.diagnosis.lengths, e.edit
    shown = [
        ("‖h‖", _number(n.hidden)),
        ("gate (recorded)", _number(edit["gate"])),
        ("planned ‖R‖", _number(n.planned) + (" (on the cap)" if n.capped else "")),
        ("predicted ‖R̂‖", _number(n.predicted) + (" (on the clamp)" if n.clamped else "")),
        ("realised", _number(n.realised)),
        ("along, across R̂", f"{_percent(n.share)}, {_number(n.aside)}"),
        ("proxy error", _percent(n.proxy_error)),
        ("learning", f"{edit['steps']} steps, loss {_number(edit['final_loss'])}, stopped by {edit['stop_reason']}"),
    ]
    return "Plan\n" + "\n".join(f"  {name:<16}  {value}" for name, value in shown)


def _layers(e: Explanation) -> str:
    rows = [(g.layer, _percent(g.gate), g.asked) for g in e.diagnosis.layers if g.gate is not None]
    return "Layers\n" + columns_text(("layer", "gate", "asked"), rows) if rows else ""


def _nearest(e: Explanation) -> str:
    loss = e.diagnosis.loss
    if loss is None:
        return ""
    layers = sorted(loss.nearest[0].cosine) if loss.nearest else []
    names = [f"layer {layer}" for layer in layers]
    rows = [
        (e.subjects[near.request], near.request[:12], *(near.cosine[l] for l in layers), *(near.push.get(l) for l in layers))
        for near in loss.nearest
    ]
    header = ("subject", "request", *(f"cos {name}" for name in names), *(f"push {name}" for name in names))
    return f"Nearest keys of batch {loss.batch}\n" + columns_text(header, rows)


def _prompts(e: Explanation) -> str:
    rows = []
    for p in e.diagnosis.prompts:
        held = ("yes" if said.holds else "no" for said in (p.before, p.at_write, p.after))
        rows.append((p.kind, p.number, p.prompt, p.wanted, *held, p.after.text.strip()))
    return "Prompts\n" + columns_text(("", "", "prompt", "wanted", "before", "at write", "after", "says after"), rows)
