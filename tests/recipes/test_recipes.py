"""Every recipe's plan, written out."""

from copd.config import (
    BandConfig,
    CoPDConfig,
    DareMerge,
    ExpertsConfig,
    MixedConfig,
    MOPDConfig,
    NoMerge,
    OPDConfig,
    PilotConfig,
    SelectMerge,
    UniformMerge,
    WeightedMerge,
)
from copd.recipes import OPD, RLVR, Merge, Plan, Stage
from copd.recipes.baselines import experts, mixed, mopd, opd, pilot
from copd.recipes.copd import copd

PAIR = {"text": "text", "image": "image"}
THREE = {"text": "text", "image": "image", "video": "video"}
NATIVE = (RLVR("text", "text"), RLVR("image", "image"), RLVR("video", "video"))


def test_experts_train_each_branch_on_its_domain_and_keep_them_all():
    assert experts(THREE, ExpertsConfig(steps=7)) == Plan(
        branches=("text", "image", "video"), stages=(Stage("experts", 7, NATIVE),)
    )


def test_experts_can_be_averaged():
    assert experts(PAIR, ExpertsConfig(steps=7, merge=UniformMerge())) == Plan(
        branches=("text", "image"),
        stages=(Stage("experts", 7, (RLVR("text", "text"), RLVR("image", "image"))),),
        merge=Merge("unified", ("text", "image"), UniformMerge()),
    )


def test_branches_may_have_other_names_than_their_domains():
    plan = experts({"a": "text", "b": "text"}, ExpertsConfig(steps=1))
    assert plan.stages[0].actions == (RLVR("a", "text"), RLVR("b", "text"))


def test_mixed_trains_one_branch_on_every_domain_in_every_step():
    assert mixed(THREE, MixedConfig(steps=9)) == Plan(
        branches=("unified",),
        stages=(
            Stage(
                "mixed",
                9,
                (RLVR("unified", "text"), RLVR("unified", "image"), RLVR("unified", "video")),
            ),
        ),
        result="unified",
    )


def test_mixed_takes_the_named_domains_only():
    plan = mixed(THREE, MixedConfig(steps=9, domains=("video", "text")))
    assert plan.stages[0].actions == (RLVR("unified", "video"), RLVR("unified", "text"))


def test_opd_trains_both_experts_and_then_the_student_only():
    config = OPDConfig(student="image", teacher="text", expert_steps=6, opd_steps=3, beta=0.5)
    assert opd(THREE, config) == Plan(
        branches=("text", "image"),
        stages=(
            Stage("experts", 6, (RLVR("text", "text"), RLVR("image", "image"))),
            Stage("opd", 3, (OPD("image", teacher="text", domain="text", beta=0.5),)),
        ),
        result="image",
    )


def test_pilot_students_have_their_own_temperature_and_one_teacher():
    config = PilotConfig(
        domain="image", temperatures=(0.5, 1.0, 2.0), expert_steps=6, student_steps=2, opd_steps=3
    )
    names = ("student_50", "student_100", "student_200")
    own = zip(names, (0.5, 1.0, 2.0), strict=True)
    assert pilot(config) == Plan(
        branches=("expert", *names),
        stages=(
            Stage("expert", 6, (RLVR("expert", "image"),)),
            Stage("students", 2, tuple(RLVR(name, "image", t) for name, t in own)),
            Stage("opd", 3, tuple(OPD(name, "expert", "image") for name in names)),
        ),
    )
    assert config.opd_start == 8


def test_opd_into_the_base_leaves_the_student_untrained_before():
    config = OPDConfig(student="base", teacher="video", expert_steps=6, opd_steps=3)
    assert opd(THREE, config) == Plan(
        branches=("video", "student"),
        stages=(
            Stage("experts", 6, (RLVR("video", "video"),)),
            Stage("opd", 3, (OPD("student", teacher="video", domain="video"),)),
        ),
        result="student",
    )


def test_mopd_lets_every_expert_teach_one_fresh_copy():
    assert mopd(PAIR, MOPDConfig(expert_steps=4, opd_steps=2, beta=2.0)) == Plan(
        branches=("text", "image", "unified"),
        stages=(
            Stage("experts", 4, (RLVR("text", "text"), RLVR("image", "image"))),
            Stage(
                "opd",
                2,
                (
                    OPD("unified", teacher="text", domain="text", beta=2.0),
                    OPD("unified", teacher="image", domain="image", beta=2.0),
                ),
            ),
        ),
        result="unified",
    )


def test_copd_with_a_pair_alternates_rlvr_and_mutual_stages():
    native = (RLVR("text", "text"), RLVR("image", "image"))
    cross = (
        OPD("text", teacher="image", domain="image"),
        OPD("image", teacher="text", domain="text"),
    )
    config = CoPDConfig(topology="pair", rounds=2, rlvr_steps=3, opd_steps=2)
    assert copd(PAIR, config) == Plan(
        branches=("text", "image"),
        stages=(
            Stage("rlvr", 3, native),
            Stage("mutual", 2, native + cross),
            Stage("rlvr", 3, native),
            Stage("mutual", 2, native + cross),
        ),
        merge=Merge("unified", ("text", "image"), UniformMerge()),
    )


def test_copd_all_to_all_has_every_ordered_pair():
    plan = copd(THREE, CoPDConfig(topology="all", rounds=1))
    assert plan.stages == (
        Stage("rlvr", 15, NATIVE),
        Stage(
            "mutual",
            10,
            (
                *NATIVE,
                OPD("text", teacher="image", domain="image"),
                OPD("text", teacher="video", domain="video"),
                OPD("image", teacher="text", domain="text"),
                OPD("image", teacher="video", domain="video"),
                OPD("video", teacher="text", domain="text"),
                OPD("video", teacher="image", domain="image"),
            ),
        ),
    )


def test_copd_with_a_hub_keeps_the_spokes_apart():
    plan = copd(THREE, CoPDConfig(topology="hub", hub="image", rounds=1))
    assert plan.stages[1].actions == (
        *NATIVE,
        OPD("text", teacher="image", domain="image"),
        OPD("image", teacher="text", domain="text"),
        OPD("image", teacher="video", domain="video"),
        OPD("video", teacher="image", domain="image"),
    )


def test_a_trunk_trains_on_everything_and_is_the_only_neighbour_of_all():
    select = SelectMerge(branch="trunk")
    plan = copd(PAIR, CoPDConfig(topology="trunk", rounds=1, beta=2.0, merge=select))
    native = (
        RLVR("text", "text"),
        RLVR("image", "image"),
        RLVR("trunk", "text"),
        RLVR("trunk", "image"),
    )
    cross = (
        OPD("text", teacher="trunk", domain="image", beta=2.0),
        OPD("image", teacher="trunk", domain="text", beta=2.0),
        OPD("trunk", teacher="text", domain="text", beta=2.0),
        OPD("trunk", teacher="image", domain="image", beta=2.0),
    )
    assert plan == Plan(
        branches=("text", "image", "trunk"),
        stages=(Stage("rlvr", 15, native), Stage("mutual", 10, native + cross)),
        result="trunk",
    )


def test_a_trunk_teaches_its_spokes_every_domain_but_their_own():
    plan = copd(THREE, CoPDConfig(topology="trunk", rounds=1))
    taught = [a for a in plan.stages[1].actions_of("text") if isinstance(a, OPD)]
    assert [(a.teacher, a.domain) for a in taught] == [("trunk", "image"), ("trunk", "video")]
    assert plan.merge is not None and plan.merge.branches == ("text", "image", "video", "trunk")


def test_with_a_band_all_rounds_are_one_stage():
    band = BandConfig(low=0.8, high=0.9)
    plan = copd(PAIR, CoPDConfig(rounds=4, rlvr_steps=3, opd_steps=2, band=band))
    native = (RLVR("text", "text"), RLVR("image", "image"))
    cross = (OPD("text", "image", "image"), OPD("image", "text", "text"))
    assert plan.stages == (Stage("mutual", 20, native + cross, band),)
    assert plan.stages[0].rlvr_only == Stage("mutual", 20, native, band)


def test_beta_belongs_to_the_student_and_zero_leaves_it_untaught():
    plan = copd(PAIR, CoPDConfig(rounds=1, beta={"text": 0.0, "image": 3.0}))
    assert plan.stages[1].actions == (
        RLVR("text", "text"),
        RLVR("image", "image"),
        OPD("image", teacher="text", domain="text", beta=3.0),
    )


def test_copd_uses_the_domain_of_a_branch_not_its_name():
    plan = copd({"a": "text", "b": "image"}, CoPDConfig(rounds=1))
    assert plan.stages[1].actions_of("a") == (
        RLVR("a", "text"),
        OPD("a", teacher="b", domain="image"),
    )


def test_how_copd_ends_is_the_merge_of_the_config():
    def ending(merge: object) -> tuple[Merge | None, str | None, str | None]:
        plan = copd(PAIR, CoPDConfig.model_validate({"type": "copd", "rounds": 1, "merge": merge}))
        return plan.merge, plan.result, plan.final

    weighted, dare = WeightedMerge(weights={"text": 1, "image": 2}), DareMerge(seed=3)
    names = ("text", "image")
    assert ending(NoMerge()) == (None, None, None)
    assert ending(SelectMerge(branch="text")) == (None, "text", "text")
    assert ending(weighted) == (Merge("unified", names, weighted), None, "unified")
    assert ending(dare) == (Merge("unified", names, dare), None, "unified")
