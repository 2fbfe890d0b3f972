"""The memory that is told before an edit starts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from flows.inspect import memory_text
from flows.job import Job
from metake.anatomy import anatomy_of
from metake.budget import Shape, budget, in_words
from metake.errors import InputError
from metake.settings import make_settings
from tests.models import tiny

LLAMA_3 = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "vocab_size": 128256, "num_key_value_heads": 8}


def test_the_shape_of_a_large_model_is_known_without_its_weights():
    config = AutoConfig.for_model("llama", **LLAMA_3, max_position_embeddings=8192)
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(config)
    shape = Shape.of(hf, anatomy_of(config))
    assert (shape.parameters, shape.depth, shape.width, shape.inner) == (8_030_261_248, 32, 4096, 14336)
    parts = budget(shape, make_settings("metake", config), batch=100, dtype="bfloat16", stored="bfloat16")
    assert parts["weights"] == 2 * shape.parameters
    assert parts["statistics: sums, spectrum"] > 5 * 8 * 14336**2, "a sum in float64 of every edited layer"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_weights_are_what_the_model_takes(family):
    lm = tiny(family, torch.float32)
    parts = budget(Shape.of(lm.hf, lm.anatomy), make_settings("metake", lm.config), batch=10, dtype="float32")
    held = {p.data_ptr(): p.numel() * p.element_size() for p in lm.hf.parameters()}
    assert parts["weights"] == sum(held.values())
    assert parts["in all"] < sum(parts.values()) - parts["in all"], "stages come one after the other"


def test_more_layers_and_wider_precision_need_more():
    lm = tiny("llama", torch.float32)
    shape = Shape.of(lm.hf, lm.anatomy)
    few, many = (make_settings("memit", lm.config, layers=layers) for layers in ([2], [0, 1, 2]))
    assert budget(shape, few, batch=10, dtype="float32")["in all"] < budget(shape, many, batch=10, dtype="float32")["in all"]
    assert budget(shape, few, batch=10, dtype="bfloat16")["in all"] < budget(shape, few, batch=10, dtype="float64")["in all"]


def test_an_a_that_is_kept_whole_needs_more_than_a_projector():
    lm = tiny("llama", torch.float32)
    shape, plain = Shape.of(lm.hf, lm.anatomy), {"layers": [1, 2], "prior": "null_space"}
    sizes = [
        budget(shape, make_settings("metake", lm.config, **{**plain, **more}), batch=10, dtype="float32")["write: keys, solves"]
        for more in ({}, {"prior": "soft"}, {"bystanders": 1.0})
    ]
    assert sizes[0] < sizes[1] < sizes[2], "bystanders are more keys than dimensions, beside the projector"


def test_an_edit_can_tell_its_memory_before_it_starts(tmp_path: Path):
    job = Job.make(home=str(tmp_path), requests=None, model=None, corpus=None, heldout=None)
    lines = memory_text(job).splitlines()
    assert lines[0] == "Memory of factlm-7m in float32, at most:"
    assert lines[1].split() == ["weights", *in_words(4 * 6_901_760).split()]
    assert lines[-1].strip().startswith("in all")


def test_a_model_that_cannot_be_edited_has_no_budget(tmp_path: Path):
    AutoConfig.for_model("mixtral").save_pretrained(tmp_path)
    job = Job.make(home=str(tmp_path), requests="r.jsonl", model=str(tmp_path), corpus=None, heldout=None)
    with pytest.raises(InputError, match="a router picks other experts"):
        memory_text(job)
