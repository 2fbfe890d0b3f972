"""Passes through a stretch of layers, from saved inputs: nothing below, before or after it is computed again.

While targets are learned the layers up to L never change, and above L only positions from the subject's last token on do
(`Rows.pivot`). A :class:`Segment` runs the model once in its own way, keeps what entered the first layer of the stretch, the call that
each layer received (masks, positions) and the keys and values of the prefix, and from then on runs only the suffix.
It calls the model's own layers, so any family that passes its attention mask, positions and cache as layer arguments works.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from metake.model import LanguageModel
from metake.prompts import Rows, lay_out


class _Stop(Exception):
    """Ends a forward pass after the last layer that is needed."""


def first_tensor(output: Any) -> Tensor:
    """A decoder layer's hidden states: newer transformers return the tensor, older ones a tuple that begins with it."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def hooks(pairs: Sequence[tuple[nn.Module, Callable]], *, before: bool = False):
    """Forward (pre-)hooks for the length of a block; they see keyword arguments too."""
    register = "register_forward_pre_hook" if before else "register_forward_hook"
    handles = [getattr(module, register)(hook, with_kwargs=True) for module, hook in pairs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Contexts:
    """The texts that stand before prompts, read once: their keys and values are the cache on which every row goes on.

    A model with a sliding window counts padding between a context and its row as distance, so rows must stay within the window.
    """

    @torch.no_grad()
    def __init__(self, lm: LanguageModel, prefixes: Sequence[Sequence[int]]):
        self.rows = lay_out(prefixes, [len(p) - 1 for p in prefixes], lm.device)
        self.cache = DynamicCache()
        lm.run(self.rows.ids, self.rows.mask, self.rows.positions, self.cache)

    @property
    def width(self) -> int:
        """Columns that a context takes."""
        return self.rows.ids.shape[1]

    def start(self, lm: LanguageModel, rows: Rows, last: int) -> tuple[DynamicCache, Callable[[], Tensor]]:
        """A cache holding each row's context, and the pass that reads the rows after it up to layer ``last``."""
        assert rows.context is not None
        cache = DynamicCache()
        for layer in range(last + 1):
            keys, values = keys_values(self.cache, layer)
            cache.update(keys[rows.context], values[rows.context], layer)
        mask = torch.cat([self.rows.mask[rows.context], rows.mask], 1)
        positions = rows.positions + self.rows.mask.sum(1)[rows.context][:, None] * rows.mask
        return cache, lambda: lm.run(rows.ids, mask, positions, cache)


def _start(lm: LanguageModel, rows: Rows, contexts: Contexts | None, last: int) -> tuple[DynamicCache, Callable[[], Tensor]]:
    if contexts is not None:
        return contexts.start(lm, rows, last)
    cache = DynamicCache()
    return cache, lambda: lm.run(rows.ids, rows.mask, rows.positions, cache)


@torch.no_grad()
def capture(
    lm: LanguageModel, rows: Rows, key_layers: Sequence[int], hidden_layer: int | None = None, contexts: Contexts | None = None
) -> tuple[dict[int, Tensor], Tensor | None]:
    """Inputs of the down-projections and one layer's output, in one pass that stops after the last layer asked for.

    Returns:
        {layer: (B, T, d_in)} for ``key_layers``, and the hidden state leaving ``hidden_layer`` (B, T, d), or None.
    """
    keys: dict[int, Tensor] = {}
    hidden: list[Tensor] = []

    def keep_key(layer: int):
        def hook(_module, args, _kwargs):
            keys[layer] = args[0]
            if hidden_layer is None and layer == max(key_layers):
                raise _Stop

        return hook

    def keep_hidden(_module, _args, _kwargs, output):
        hidden.append(first_tensor(output))
        raise _Stop

    ends = [] if hidden_layer is None else [(lm.layers[hidden_layer], keep_hidden)]
    with hooks([(lm.down(l), keep_key(l)) for l in key_layers], before=True), hooks(ends):
        try:
            _start(lm, rows, contexts, max([*key_layers, -1 if hidden_layer is None else hidden_layer]))[1]()
        except _Stop:
            return keys, hidden[0] if hidden else None
    raise AssertionError("the model ended before the layers that were asked for")


def keys_values(cache: Any, layer: int) -> tuple[Tensor, Tensor]:
    """A layer's cached keys and values, each (B, heads, T, d_head)."""
    return cache.layers[layer].keys, cache.layers[layer].values


class _FrozenPrefix:
    """Stands where a layer expects its cache: answers with the prefix's keys and values before the new ones, and keeps nothing."""

    def __init__(self, layers: dict[int, tuple[Tensor, ...]]):
        self.layers_kv = layers

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        k, v = self.layers_kv[layer_idx]
        return torch.cat([k, key], dim=-2), torch.cat([v, value], dim=-2)


def _pick(value: Any, rows: Tensor | None, pivot: int, full: tuple[int, int]) -> Any:
    """The part of a layer's argument that belongs to the chosen rows and to the columns from the pivot on.

    Masks are (B|1, heads|1, T, T): their query axis is cut. Position tables are (B|1, T, …) or (T,).
    """
    if isinstance(value, tuple | list):
        return type(value)(_pick(v, rows, pivot, full) for v in value)
    if not isinstance(value, Tensor):
        return value
    batch, width = full
    if rows is not None and value.dim() > 1 and value.shape[0] == batch:
        value = value[rows]
    if value.dim() == 4:
        return value[:, :, pivot:]
    axis = 0 if value.dim() == 1 else 1
    return value.narrow(axis, pivot, width - pivot) if value.shape[axis] == width else value


class Segment:
    """Layers ``first … last`` over the columns from the pivot on.

    Attributes:
        input: hidden states entering layer ``first``, (B, S, d) with S the suffix's length.
        output: hidden states leaving layer ``last`` in the pass that made this segment, (B, S, d).
        keys: {layer: (B, d_in)} inputs of the down-projections of ``key_layers`` at the pivot, in that pass.
    """

    @torch.no_grad()
    def __init__(
        self, lm: LanguageModel, rows: Rows, first: int, last: int, *, contexts: Contexts | None = None, key_layers: Sequence[int] = ()
    ):
        self.lm, self.first, self.last, self.pivot = lm, first, last, rows.pivot
        self._full = (rows.ids.shape[0], rows.ids.shape[1])
        self._calls: dict[int, tuple[tuple, dict]] = {}
        self.keys: dict[int, Tensor] = {}
        cache, read = _start(lm, rows, contexts, last)
        kept: dict[str, Tensor] = {}

        def keep_key(layer: int):
            def hook(_module, args, _kwargs):
                self.keys[layer] = args[0][:, rows.pivot]

            return hook

        def keep_call(layer: int):
            def hook(_module, args, kwargs):
                hidden = args[0] if args else kwargs["hidden_states"]
                kept.setdefault("input", hidden)
                self._calls[layer] = (args[1:], {k: v for k, v in kwargs.items() if k != "hidden_states"})

            return hook

        def keep_output(_module, _args, _kwargs, output):
            kept["output"] = first_tensor(output)
            raise _Stop

        calls = [(lm.layers[l], keep_call(l)) for l in range(first, last + 1)]
        keys = [(lm.down(l), keep_key(l)) for l in key_layers]
        with hooks(calls + keys, before=True), hooks([(lm.layers[last], keep_output)]), suppress(_Stop):
            read()
        self.input, self.output = kept["input"][:, self.pivot :], kept["output"][:, self.pivot :]
        before = self.pivot + (contexts.width if contexts else 0)
        prefix = {l: tuple(t[:, :, :before] for t in keys_values(cache, l)) for l in self._calls}
        self._select(prefix, None)

    def _select(self, prefix: dict[int, tuple[Tensor, ...]], rows: Tensor | None) -> None:
        """Keeps, for the chosen rows, the suffix's part of every call and the prefix's keys and values."""
        self._prefix = {l: (k, v) if rows is None else (k[rows], v[rows]) for l, (k, v) in prefix.items()}
        frozen = _FrozenPrefix(self._prefix)
        pivot, calls = self.pivot, {}
        for layer, (args, kwargs) in self._calls.items():
            cut = [_pick(a, rows, pivot, self._full) if not hasattr(a, "update") else frozen for a in args]
            named = {
                k: frozen if hasattr(v, "update") and not isinstance(v, dict) else _pick(v, rows, pivot, self._full)
                for k, v in kwargs.items()
            }
            calls[layer] = (tuple(cut), named)
        width = self._full[1] - pivot
        batch = self._full[0] if rows is None else len(rows)
        self._calls, self._full, self.pivot = calls, (batch, width), 0

    def keep(self, rows: Tensor) -> None:
        """Goes on with the chosen rows only (int64 indices)."""
        self.input, self.output = self.input[rows], self.output[rows]
        self._select(self._prefix, rows)

    def __call__(self, hidden: Tensor, first: int | None = None) -> Tensor:
        """Hidden states leaving layer ``last`` when ``hidden`` (B, S, d) enters layer ``first``: the segment's own, or one above it."""
        for layer in range(self.first if first is None else first, self.last + 1):
            args, kwargs = self._calls[layer]
            hidden = first_tensor(self.lm.layers[layer](hidden, *args, **kwargs))
        return hidden
