"""The cost model, by numbers worked out by hand."""

from dataclasses import replace

import pytest

from copd.planning.cluster.machine import MACHINES, Machine
from copd.planning.cluster.predict import last_update, predict, sample, score, update
from copd.planning.cluster.work import (
    Setup,
    complete_flops,
    loop_bytes,
    read_flops,
    traffic_bytes,
    update_flops,
    vision_flops,
)
from copd.planning.shapes import QWEN3_VL_4B, Shapes, Tower
from copd.planning.workload import Lengths, Workload, decode_loops
from copd.recipes import OPD, RLVR, Stage

# a layer has 2 x 3 weights for queries, keys and values of width 1; a vocabulary of 5
SMALL = Shapes(
    parameters=30,
    layers=2,
    hidden=2,
    intermediate=0,
    query=3,
    key=1,
    num_heads=3,
    vocabulary=5,
    has_head_norms=False,
    is_tied=True,
    linears={f"{i}.{n}": (w, 2) for i in range(2) for n, w in (("q", 3), ("k", 1), ("v", 1))},
    largest=10,
)
# two completions of 3 tokens each after each of four prompts of 4 tokens
LOAD = Workload(4, 2, 4, Lengths(3, 9, 3))
UNIT = Machine(
    "unit",
    flops=1.0,
    bandwidth=1.0,
    memory=1e3,
    links=1.0,
    network=0.5,
    node_gpus=2,
    pass_efficiency=1.0,
    train_efficiency=1.0,
    decode_efficiency=1.0,
    bandwidth_efficiency=1.0,
    optimizer_efficiency=1.0,
    link_efficiency=1.0,
    layer_seconds=0.0,
    pass_seconds=0.0,
    prompt_seconds=0.0,
    store=1.0,
)


def test_flops_by_hand():
    """w = 10 a layer. A prompt: R = 4, A = 10; a completion: R = 2, A = 2 * 4 + 3, T = 3."""
    assert read_flops(SMALL, LOAD) == 4 * 2 * (2 * 10 * 4 + 4 * 3 * 10)
    assert complete_flops(SMALL, LOAD) == 8 * (2 * (2 * 10 * 2 + 4 * 3 * 11) + 2 * 10 * 3)


def test_an_update_is_three_forward_passes_less_what_sampling_has_read():
    reading, writing = read_flops(SMALL, LOAD), complete_flops(SMALL, LOAD)
    once, twice = Setup(SMALL, 16, 8), Setup(SMALL, 15, 8)
    assert len(once.loops([LOAD])) == 1 < len(twice.loops([LOAD]))
    assert update_flops(once, [LOAD]) == 3 * writing + 2 * reading
    assert update_flops(twice, [LOAD]) == 3 * (writing + reading)
    assert update_flops(replace(twice, checkpointing=True), [LOAD]) == 4 * (writing + reading)
    assert update_flops(replace(once, lora=True), [LOAD]) == 2 * (writing + reading)


def test_decoding_reads_weights_once_a_step_and_keys_of_a_prompt_once_a_group():
    """Numbers of 2 bytes: 3 steps x 30 weights; 4 keys and values a token."""
    assert loop_bytes(SMALL, (LOAD,)) == 2 * (3 * 30 + 4 * (4 * 4 * 3 + 8 * 4.5))


def test_methods_are_bound_by_memory_or_matmuls():
    setup = Setup(SMALL, 16, 8)
    reading, writing = read_flops(SMALL, LOAD), complete_flops(SMALL, LOAD)
    moved = loop_bytes(SMALL, (LOAD,))
    assert writing > moved
    assert sample(UNIT, setup, [LOAD]) == reading + writing
    assert sample(replace(UNIT, bandwidth=1e-3), setup, [LOAD]) == reading + 1000 * moved
    assert sample(replace(UNIT, layer_seconds=1.0), setup, [LOAD]) == reading + writing + 3 * 2
    assert score(UNIT, setup, [LOAD]) == reading + writing
    assert update(UNIT, setup, [LOAD]) == update_flops(setup, [LOAD]) + 36 * 30


def test_a_wide_branch_shares_groups_and_talks():
    """Three processes, four prompts: the busiest has two. Beyond a node the network is slower."""
    alone, wide = Setup(SMALL, 16, 8), Setup(SMALL, 16, 8, width=3)
    half = replace(LOAD, num_prompts=2)
    assert LOAD.share(3) == half
    assert wide.gathered_bytes == 2 * 30 * 2 / 3
    found = predict(UNIT, wide, Stage("s", 1, (RLVR("a", "x"),)), {"x": LOAD}, probes=0, top_k=0)
    sent = wide.gathered_bytes / 0.5
    assert found.methods["sample"] == {"a": sample(UNIT, alone, [half]) + sent}
    passes = wide.num_passes([half])
    learned = update_flops(wide, [half]) + 36 * 30 / 3
    assert found.methods["update"]["a"] == pytest.approx(learned + passes * (2 * 40 + 80) / 0.5)


def test_groups_are_never_cut_into_micro_batches():
    """A group is 4 + 2 * 3 tokens."""
    sizes = {1: 4, 19: 4, 20: 2, 39: 2, 40: 1}
    assert {n: Setup(SMALL, n, 8).num_passes([LOAD]) for n in sizes} == sizes


def test_traffic_by_hand():
    """N = 24, B = 8, M = 2, K = 3."""
    batch = 12 * 24 + 9 * 8
    assert traffic_bytes(LOAD, is_cross=False, probes=2, top_k=3) == 2 * batch
    cross = 4 * 24 + 4 * 8 + 4 * 2 + 2 * (4 * 24 + 4 * 2 + 8 * 2 * 3)
    assert traffic_bytes(LOAD, is_cross=True, probes=2, top_k=3) == 2 * batch + cross


HUB = Stage(
    "mutual",
    1,
    (
        *(RLVR(name, name) for name in "hij"),
        *(OPD("h", spoke, spoke) for spoke in "ij"),
        *(OPD(spoke, "h", "h") for spoke in "ij"),
    ),
)


def test_nobody_waits_for_more_than_it_needs():
    """h scores when all have sampled, at 20; i when it and h have, at 5. Both teach h."""
    methods = {
        "sample": {"h": 5.0, "i": 4.0, "j": 20.0},
        "score": {"h": 3.0, "i": 30.0, "j": 1.0},
        "update": {"h": 1.0, "i": 2.0, "j": 7.0},
    }
    # h: scored 23, i 35, j 21; updates: h 35 + 1, i 35 + 2, j 23 + 7
    assert last_update(methods, HUB) == 37
    methods["score"]["i"] = 1.0  # i: scored 6, updates at 23 + 2; j still at 23 + 7
    assert last_update(methods, HUB) == 30


def test_a_step_adds_messages_and_says_how_busy_gpus_are():
    loads = dict.fromkeys("hij", LOAD)
    setup = Setup(SMALL, 16, 8)
    found = predict(UNIT, setup, HUB, loads, probes=2, top_k=3)
    native = traffic_bytes(LOAD, is_cross=False, probes=2, top_k=3)
    cross = traffic_bytes(LOAD, is_cross=True, probes=2, top_k=3)
    assert found.traffic == 3 * native + 4 * cross
    assert found.seconds == found.traffic + last_update(found.methods, HUB)
    assert found.methods["score"]["h"] == 2 * found.methods["score"]["i"]
    assert found.busy(6) == pytest.approx(found.busy(3) / 2)
    whole = read_flops(SMALL, LOAD) + complete_flops(SMALL, LOAD)
    assert found.flops == (3 * 7 + 4) * whole
    assert 0 < found.of_peak(3, UNIT) < found.busy(3) < 1


def test_a_wide_branch_is_busy_on_all_its_gpus():
    stage, setup = Stage("rlvr", 1, (RLVR("h", "h"),)), Setup(SMALL, 16, 8, width=2)
    found = predict(UNIT, setup, stage, {"h": LOAD}, probes=0, top_k=0)
    assert found.busy(2) == pytest.approx(found.alone / found.seconds)


def test_a_frozen_tower_has_no_optimizer_and_no_update():
    load = Workload(4, 2, 40, Lengths(3, 9, 3), visual_tokens=4, pictures=1)
    trained = Setup(QWEN3_VL_4B, 1000, 8)
    frozen = replace(trained, trains_vision=False)
    assert trained.num_trained - frozen.num_trained == QWEN3_VL_4B.tower_parameters > 0
    tower = 2 * vision_flops(QWEN3_VL_4B, load)
    saved = update_flops(trained, [load]) - update_flops(frozen, [load])
    assert saved == pytest.approx(tower)


def test_vision_by_hand():
    """4 prompts of 8 patches in 2 pictures; a block has 20 weights, mergers 2 * 4 * 5."""
    tower = Tower(3, 2, 1, 1, 4, 2, values_per_patch=7, num_features=2, is_gated=False)
    load = Workload(4, 2, 40, Lengths(3, 9, 3), visual_tokens=4, pictures=2)
    blocks = 3 * (2 * 20 * 8 + 4 * 2 * 2 * 4**2)
    assert vision_flops(replace(SMALL, tower=tower), load) == 4 * (
        blocks + 2 * 2 * 4 * 5 * 4 + 2 * 7 * 2 * 8
    )
    assert vision_flops(SMALL, load) == 0


@pytest.mark.parametrize("name", MACHINES)
def test_more_gpus_are_never_slower_at_the_papers_sizes(name: str):
    """Up to the network beyond a node, and up to a problem for every GPU."""
    load = Workload(256, 8, 300, Lengths.spread(2048, 16_384, 0.5))
    stage = Stage("s", 1, (RLVR("a", "x"),))
    seconds = [
        predict(
            MACHINES[name],
            Setup(QWEN3_VL_4B, 16_384, 64, width=width),
            stage,
            {"x": load},
            probes=0,
            top_k=0,
        ).seconds
        for width in (1, 2, 8, 32, 256)
    ]
    assert seconds == sorted(seconds, reverse=True)


def test_lengths_are_all_at_the_limit_or_spread():
    assert Lengths.spread(10, 10, 0.5) == Lengths(10, 100, 10)
    assert Lengths.spread(4, 10, 0.5) == Lengths(4, 20, 10)
    assert Lengths.spread(4, 100, 0.25) == Lengths(4, 17, 7)


def test_loops_are_cut_as_sampling_cuts_them():
    torch = pytest.importorskip("torch")
    from copd.branch.sampling import plan_decode_loops
    from copd.policy import Prompt, SamplingRequest

    loads = [replace(LOAD, num_prompts=p, prompt_tokens=t) for p, t in ((5, 4), (3, 9), (1, 30))]
    requests = [
        SamplingRequest([Prompt(torch.zeros(load.prompt_tokens))] * load.num_prompts, 2, 1.0, 0)
        for load in loads
    ]
    index = {load.prompt_tokens: i for i, load in enumerate(loads)}
    for rows in (2, 5, 8, 100):
        for tokens in (1, 12, 20, 1000):
            cut = plan_decode_loops(requests, max_rows=rows, max_tokens=tokens)
            expected = [[(i, part.stop - part.start) for i, part in loop] for loop in cut]
            found = [
                [(index[part.prompt_tokens], part.num_prompts) for part in loop]
                for loop in decode_loops(loads, max_rows=rows, max_tokens=tokens)
            ]
            assert found == expected, (rows, tokens)
