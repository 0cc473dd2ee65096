"""A teacher that is not what it should be is refused before it teaches."""

import pytest
import torch

from copd.branch import Branch
from copd.engine import LocalEngine
from copd.recipes import build_plan
from copd.run.preflight import check_teachers


@pytest.fixture
def ready(make_config, tmp_path):
    config = make_config(tmp_path)
    engine, plan = LocalEngine(config), build_plan(config)
    for name in plan.branches:
        engine.spawn(name, "tiny")
    return engine, config, plan


def test_equal_branches_pass(ready):
    check_teachers(*ready)


def test_a_teacher_with_other_weights_is_refused(ready):
    engine, config, plan = ready
    weights = engine.each(Branch.weights, {"video": None})["video"]
    weights["model.language_model.norm.weight"] += 0.1
    engine.each(Branch.set_weights, {"video": weights})
    with pytest.raises(ValueError, match=r"'video' as a teacher of 'image'.*disagrees by"):
        check_teachers(engine, config, plan)


def test_a_teacher_in_training_mode_with_dropout_is_refused(ready):
    engine, config, plan = ready
    model = engine._branches["text"]._policy.model

    def shaken(_module, _inputs, output):
        return torch.nn.functional.dropout(output, 0.1, training=True)

    model.get_input_embeddings().register_forward_hook(shaken)
    with pytest.raises(ValueError, match=r"'text' as a teacher.*differently twice"):
        check_teachers(engine, config, plan)


def test_a_uniform_teacher_is_refused(ready):
    engine, config, plan = ready
    for name in plan.branches:
        weights = engine.each(Branch.weights, {name: None})[name]
        weights["model.language_model.norm.weight"] *= 0
        engine.each(Branch.set_weights, {name: weights})
    with pytest.raises(ValueError, match="gives every token the same probability"):
        check_teachers(engine, config, plan)
