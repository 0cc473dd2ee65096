"""The cost model, by numbers worked out by hand."""

from dataclasses import replace

import pytest

from copd.planning.cluster import (
    MACHINES,
    QWEN3_VL_4B,
    Lengths,
    Machine,
    Setup,
    Widths,
    Workload,
    last_update,
    predict,
)
from copd.planning.cluster.predict import sample, score, update
from copd.planning.cluster.work import (
    Loop,
    complete_flops,
    decode_loops,
    gathered_bytes,
    num_passes,
    read_flops,
    traffic_bytes,
    update_flops,
)
from copd.recipes import OPD, RLVR, Stage

# one layer of 2 x 3 weights and one of keys and values of width 1, a vocabulary of 5
SMALL = Widths(
    text={"q": (2, 3), "k": (2, 1), "v": (2, 1)},
    num_layers=2,
    attention=3,
    head=(2, 5),
    patch=(0, 0),
    block={},
    num_blocks=0,
    merger={},
    num_mergers=0,
    patches_per_token=1,
)
# two completions of 3 tokens each after each of four prompts of 4 tokens
LOAD = Workload(4, 2, 4, (), Lengths(3, 9, 3))
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


def test_sizes_of_the_papers_model():
    """4.44 B weights by its model card; 36 layers with 8 heads of 128 for keys and for values."""
    assert QWEN3_VL_4B.num_parameters == pytest.approx(4.4378e9, rel=1e-3)
    assert QWEN3_VL_4B.cached == 36 * 2 * 8 * 128
    state = Setup(QWEN3_VL_4B, 1, 1).state_bytes
    assert state == pytest.approx((16 + 2) * QWEN3_VL_4B.num_parameters)


def test_a_text_model_has_no_tower_and_maybe_two_embeddings():
    config = {
        "hidden_size": 4,
        "intermediate_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "vocab_size": 10,
        "tie_word_embeddings": False,
    }
    widths = Widths.read(config)
    assert widths.num_parameters == 3 * (4 * 16 + 3 * 32) + 2 * 40
    assert widths.vision_flops(()) == widths.num_vision == 0


def test_flops_by_hand():
    """w = 10 a layer. A prompt: R = 4, A = 10; a completion: R = 2, A = 2 * 4 + 3, T = 3."""
    assert read_flops(SMALL, LOAD) == 4 * 2 * (2 * 10 * 4 + 4 * 3 * 10)
    assert complete_flops(SMALL, LOAD) == 8 * (2 * (2 * 10 * 2 + 4 * 3 * 11) + 2 * 10 * 3)


def test_an_update_is_three_forward_passes_less_what_sampling_has_read():
    reading, writing = read_flops(SMALL, LOAD), complete_flops(SMALL, LOAD)
    kept, twice = Setup(SMALL, 16, 8), Setup(SMALL, 15, 8)
    assert len(list(decode_loops(kept, [LOAD]))) == 1 < len(list(decode_loops(twice, [LOAD])))
    assert update_flops(kept, [LOAD]) == 3 * writing + 2 * reading
    assert update_flops(twice, [LOAD]) == 3 * (writing + reading)
    assert update_flops(replace(twice, checkpointing=True), [LOAD]) == 4 * (writing + reading)
    assert update_flops(replace(kept, lora=True), [LOAD]) == 2 * (writing + reading)


def test_decoding_reads_weights_once_a_step_and_keys_of_a_prompt_once_a_group():
    """Numbers of 2 bytes: 3 steps x 30 weights; 4 keys and values a token."""
    assert Loop((LOAD,)).bytes_read(SMALL) == 2 * (3 * 30 + 4 * (4 * 4 * 3 + 8 * 4.5))
    assert Loop((LOAD,)).cache_bytes(SMALL) == 2 * 4 * (4 * 4 + 8 * 3)


def test_rows_leave_when_half_of_them_have_ended():
    load = replace(LOAD, lengths=Lengths(5, 30, 100))
    assert Loop((load,)).cache_bytes(SMALL) == 2 * 4 * (4 * 4 + 8 * 8)


def test_verbs_are_bound_by_memory_or_matmuls():
    setup = Setup(SMALL, 16, 8)
    reading, writing = read_flops(SMALL, LOAD), complete_flops(SMALL, LOAD)
    moved = Loop((LOAD,)).bytes_read(SMALL)
    assert writing > moved
    assert sample(UNIT, setup, [LOAD]) == reading + writing
    assert sample(replace(UNIT, bandwidth=1e-3), setup, [LOAD]) == reading + 1000 * moved
    assert sample(replace(UNIT, layer_seconds=1.0), setup, [LOAD]) == reading + writing + 3 * 2
    assert score(UNIT, setup, [LOAD]) == reading + writing
    assert update(UNIT, setup, [LOAD]) == update_flops(setup, [LOAD]) + 36 * 30


def test_a_wide_branch_shares_groups_and_talks():
    """Three processes, four prompts: the busiest has two. Beyond a node the network is slower."""
    alone, wide = Setup(SMALL, 16, 8), Setup(SMALL, 16, 8, width=3)
    half = replace(LOAD, prompts=2)
    assert LOAD.share(3) == half
    assert gathered_bytes(wide) == 2 * 30 * 2 / 3
    found = predict(UNIT, wide, Stage("s", 1, (RLVR("a", "x"),)), {"x": LOAD}, probes=0, top_k=0)
    sent = gathered_bytes(wide) / 0.5
    assert found.methods["sample"] == {"a": sample(UNIT, alone, [half]) + sent}
    passes = num_passes(wide, half)
    learned = update_flops(wide, [half]) + 36 * 30 / 3
    assert found.methods["update"]["a"] == pytest.approx(learned + passes * (2 * 40 + 80) / 0.5)


def test_groups_are_never_cut_into_micro_batches():
    """A group is 4 + 2 * 3 tokens."""
    sizes = {1: 4, 19: 4, 20: 2, 39: 2, 40: 1}
    assert {n: num_passes(Setup(SMALL, n, 8), LOAD) for n in sizes} == sizes


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


def test_a_step_adds_messages_and_tells_how_busy_gpus_are():
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


def test_memory_is_state_and_the_largest_loops_cache():
    stage, setup = Stage("rlvr", 1, (RLVR("h", "h"),)), Setup(SMALL, 16, 8)
    weights = SMALL.num_parameters
    # two layers' key and value in bfloat16: four prompts of 4 tokens, 8 rows of 3
    cache = 2 * 4 * (16 + 24)

    def memory(**changes) -> float:
        changed = replace(setup, **changes)
        return predict(UNIT, changed, stage, {"h": LOAD}, probes=0, top_k=0).memory

    assert memory() == 18 * weights + cache
    assert memory(eight_bit=True) == 12 * weights + cache
    assert memory(lora=True) == 6 * weights + cache


def test_a_wide_branch_is_busy_on_all_its_gpus():
    stage, setup = Stage("rlvr", 1, (RLVR("h", "h"),)), Setup(SMALL, 16, 8, width=2)
    found = predict(UNIT, setup, stage, {"h": LOAD}, probes=0, top_k=0)
    assert found.busy(2) == pytest.approx(found.alone / found.seconds)


def test_a_frozen_tower_has_no_optimizer_and_no_update():
    load = Workload(4, 2, 40, (16,), Lengths(3, 9, 3))
    trained = Setup(QWEN3_VL_4B, 1000, 8)
    frozen = replace(trained, trains_vision=False)
    assert trained.num_trained - frozen.num_trained == QWEN3_VL_4B.num_vision > 0
    tower = 2 * 4 * (QWEN3_VL_4B.vision_flops((16,)) + QWEN3_VL_4B.patch_flops((16,)))
    saved = update_flops(trained, [load]) - update_flops(frozen, [load])
    assert saved == pytest.approx(tower)


@pytest.mark.parametrize("name", MACHINES)
def test_more_gpus_are_never_slower_at_the_papers_sizes(name: str):
    """Up to the network beyond a node, and up to a problem for every GPU."""
    load = Workload(256, 8, 300, (), Lengths.spread(2048, 16_384, 0.5))
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

    loads = [replace(LOAD, prompts=p, prompt_tokens=t) for p, t in ((5, 4), (3, 9), (1, 30))]
    wanted = [
        SamplingRequest([Prompt(torch.zeros(load.prompt_tokens))] * load.prompts, 2, 1.0, 0)
        for load in loads
    ]
    for rows in (2, 5, 8, 100):
        for tokens in (1, 12, 20, 1000):
            cut = plan_decode_loops(wanted, max_rows=rows, max_tokens=tokens)
            expected = [[(i, part.stop - part.start) for i, part in loop] for loop in cut]
            found = [
                [
                    (loads.index(replace(ld, prompts=_whole(loads, ld))), ld.prompts)
                    for ld in lp.loads
                ]
                for lp in decode_loops(Setup(SMALL, tokens, rows), loads)
            ]
            assert found == expected, (rows, tokens)


def _whole(loads: list[Workload], piece: Workload) -> int:
    return next(ld.prompts for ld in loads if ld.prompt_tokens == piece.prompt_tokens)
