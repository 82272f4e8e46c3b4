"""Recipes of study: the claims of the paper, each asked in small."""

from dataclasses import replace

from lightgen.ports.nano.emoji import ErrorKnob
from lightgen.recipes.align import DRAWS, nano_offline, nano_raft
from lightgen.recipes.align import nano as rounds_of_pairs
from lightgen.recipes.small_world import (
    RUN,
    TEACHER,
    TEST,
    WORLD,
    from_nothing,
    language,
    learned,
    paper_claim,
    world,
)
from lightgen.recipes.train_nano import finetune_nano
from lightgen.stages.decoding import DecodeOverrides
from lightgen.stages.distill import NanoPrompts
from lightgen.stages.student import StudentTeacherConfig
from lightgen.stages.study_config import Arm, Claim, Expected, Phase, StudyConfig, StudyData
from lightgen.stages.tasks import PretrainTask


def diversity() -> StudyConfig:
    """Do more captions or more pictures of each caption help, where training costs the same?

    48, 192 and 768 distinct captions with 1, 4 and 16 pictures each; sets of one seed hold one another.
    Source: arXiv 2503.08619, abstract and section 1; its Fig. 6a varies the amount alone.
    Hardware: one core. Time: an hour and a half a seed by estimate.
    """
    num, each = (48, 192, 768), (1, 4, 16)
    arms = [
        learned(
            _set(captions, pictures), world(captions, pictures), language(), captions, f"{pictures} of each"
        )
        for pictures in each
        for captions in num
    ]
    diverse, where = "diverse data makes a good student, rather than much data", "abstract and section 1"
    return StudyConfig(
        title="Diversity against volume",
        question="At equal compute, do more captions or more pictures of each caption make a better student?",
        arms=tuple(arms),
        claims=(
            paper_claim(f"{diverse}: 192 pictures", _set(48, 4), _set(192, 1), "higher", where),
            paper_claim(f"{diverse}: 768 pictures", _set(48, 16), _set(192, 4), "higher", where),
            paper_claim(f"{diverse}: 3,072 pictures", _set(192, 16), _set(768, 4), "higher", where),
            paper_claim(
                "volume alone brings nothing", _set(192, 1), _set(192, 16), "same", "abstract, read strictly"
            ),
        ),
        test=TEST,
        x_label="distinct captions",
        log_x=True,
    )


def _set(captions: int, pictures: int) -> str:
    return f"{captions} captions x {pictures}"


def data_scale() -> StudyConfig:
    """Does a student stop gaining from more data?

    64 to 4,096 pictures, each of its own caption, in as many steps. Source: arXiv 2503.08619, section 5.3 and
    Fig. 6a: gains flatten near 1M pictures. Hardware: one core. Time: 45 minutes a seed by
    estimate.
    """
    sizes = (64, 256, 1_024, 4_096)
    return StudyConfig(
        title="Data scale",
        question="At equal compute, where do more pictures stop to make a better student?",
        arms=tuple(learned(f"{num} pictures", world(num), language(), num) for num in sizes),
        claims=(
            paper_claim("more pictures help", "64 pictures", "1024 pictures", "higher", "Fig. 6a"),
            paper_claim("and then no more", "1024 pictures", "4096 pictures", "same", "Fig. 6a"),
        ),
        test=TEST,
        x_label="pictures, each of its own caption",
        log_x=True,
    )


def iterations() -> StudyConfig:
    """How does the score grow with the steps of training?

    35 to 560 steps on 1,024 pictures. Source: arXiv 2503.08619, section 5.3 and Fig. 6b: 80k steps of 100k
    are already reasonable; Table 1: .49 then, .53 at the end. Hardware: one core. Time: 80 minutes a
    seed by estimate.
    """
    steps = (35, 70, 140, 280, 560)
    arms = (learned(f"{each} steps", world(), language(each), each, tflop=False) for each in steps)
    return StudyConfig(
        title="Training iterations",
        question="How does the score grow with the steps of training?",
        arms=tuple(arms),
        claims=(
            paper_claim("longer training helps", "35 steps", "280 steps", "higher", "Table 1, Fig. 6b"),
            paper_claim(
                "and flattens towards its end", "280 steps", "560 steps", "same", "section 5.3, read freely"
            ),
        ),
        test=TEST,
        x_label="optimizer steps",
        log_x=True,
    )


def flip() -> StudyConfig:
    """Do pictures that are mirrored at random spoil left and right?

    Source: arXiv 2503.08619, section 4.2, where its authors blame the flip for what is placed wrongly.
    Hardware: one core. Time: 40 minutes a seed.
    """
    tags = ("single_object", "position")
    data = StudyData(prompts=replace(WORLD, tags=tags), teacher=TEACHER)
    test = replace(TEST, num=96, tags=tags)
    train = language(280)
    return StudyConfig(
        title="Horizontal flip",
        question="Do pictures that are mirrored at random, under the same captions, spoil left and right?",
        arms=(
            learned("as drawn", data, train),
            learned("mirrored at random", replace(data, flip=True), train),
        ),
        claims=(
            paper_claim(
                "the flip costs position",
                "as drawn",
                "mirrored at random",
                "lower",
                "section 4.2",
                "position",
            ),
        ),
        test=test,
        x_label="pictures",
    )


def resolution() -> StudyConfig:
    """Do first steps at low resolution save compute?

    Half or a quarter of the budget goes to pictures of 64 px, the rest to 128 px, all from nothing.
    Source: arXiv 2503.08619, section 5.1 (256 px, then 512; done so, not compared). Hardware: one core.
    Time: 50 minutes a seed.
    """
    train, data = from_nothing(), world(2_048)
    small, on = replace(data, size=64), replace(train, task=PretrainTask(train_text_encoder=True))

    def staged(share: float) -> tuple[Phase, ...]:
        return (
            Phase(data=small, train=replace(train, fit=replace(train.fit, held_out=0)), share=share),
            Phase(data=data, train=on, share=1 - share),
        )

    arms = {0.0: "128 px alone", 0.25: "a quarter at 64 px", 0.5: "half at 64 px"}
    whole = (Phase(data=data, train=train),)
    pair = ("128 px alone", "half at 64 px")
    return StudyConfig(
        title="Stages of resolution",
        question="At equal compute, does a student that begins at low resolution become a better one?",
        arms=tuple(
            Arm(name=name, x=share, phases=staged(share) if share else whole, draws=DRAWS)
            for share, name in arms.items()
        ),
        claims=(
            paper_claim("low resolution first", *pair, "lower", "section 5.1, not compared", "loss"),
            paper_claim("low resolution first", *pair, "higher", "section 5.1, not compared"),
        ),
        tflop=40.0,
        test=TEST,
        x_label="share of the budget at 64 px",
    )


def preferences() -> StudyConfig:
    """Do preferences bring more than as much of other training?

    The shipped student as it is, after the paper's round, after rounds among its own pictures, by pairs or by
    the right ones alone, and after more of the training that it had, on an imperfect teacher's pictures.
    Source: arXiv 2503.08619, Table 2 (.53 to .62). Hardware: one core. Time: an hour a seed by
    estimate.
    """
    errors = ErrorKnob(wrong_count=0.1, wrong_place=0.1, wrong_color=0.05, blur=0.05)
    scenes = StudyData(prompts=NanoPrompts(num=6_000, seed=500), teacher=replace(TEACHER, errors=errors))
    longer = finetune_nano()
    # as many steps as take about the time of the rounds
    longer = replace(longer, fit=replace(longer.fit, num_steps=180), run=RUN)
    return StudyConfig(
        title="Preferences against their alternatives",
        question="In equal time, do preferences bring more than other ways to go on?",
        arms=(
            Arm(name="as shipped", phases=(), draws=DRAWS),
            learned("longer training", scenes, longer, tflop=False),
            Arm(name="a teacher preferred", phases=(), align=nano_offline(), draws=DRAWS),
            Arm(name="right preferred to wrong", phases=(), align=rounds_of_pairs(), draws=DRAWS),
            Arm(name="right ones alone", phases=(), align=nano_raft(), draws=DRAWS),
        ),
        claims=(
            paper_claim("preferences help", "as shipped", "a teacher preferred", "higher", "Table 2"),
            Claim(
                text="they bring more than as much of other training",
                source="arXiv 2311.12908, section 5.5, against tuning on the winners",
                first="longer training",
                second="right preferred to wrong",
                expected="higher",
            ),
        ),
        test=NanoPrompts(num=120, split="test", seed=7),
        test_images=4,
        x_label="way to go on",
    )


def sampler() -> StudyConfig:
    """Which settings of drawing cost what, and what do they bring?

    The shipped student; one setting differs at a time from 16 iterations, 12 steps of the head, guidance 3.
    Source: arXiv 2503.08619, section 5.1 (64 iterations) and its released code (100 steps, guidance 4);
    2406.11838 (fewer iterations); 2505.20297 (fewer steps of the head at the end); 2503.12450 (cache);
    2404.07724 (guidance interval). Hardware: one core. Time: an hour a seed by estimate.
    """
    base = {"num_iterations": 16, "num_head_steps": 12, "solver": "ddim", "guidance_scale": 3.0}
    varied = {
        "iterations": [{"num_iterations": each} for each in (4, 8, 16, 32)],
        "steps of the head": [{"num_head_steps": each} for each in (3, 6, 24)],
        "fewer steps at the end": [{"num_head_steps": 12, "last_head_steps": 3}],
        "solver": [{"solver": "dpm++"}, {"solver": "dpm++", "num_head_steps": 6}],
        "temperature": [{"temperature": each} for each in (0.8, 0.9)],
        "iterations between full passes": [{"refresh_every": each} for each in (2, 4)],
        "guidance": [{"guidance_scale": each} for each in (1.0, 2.0, 5.0)],
        "rise of guidance": [{"guidance_rise": 1.0}],
        "interval of guidance": [{"guidance_interval": (0.1, 0.8)}],
    }
    arms = [
        Arm(
            name=", ".join(_told(setting) for setting in each.items()),
            series=series,
            phases=(),
            draws=StudentTeacherConfig(overrides=DecodeOverrides(**{**base, **each})),
        )
        for series, settings in varied.items()
        for each in settings
    ]
    return StudyConfig(
        title="Sampler",
        question="Which settings of drawing cost what, and what do they bring?",
        arms=tuple(arms),
        claims=(
            _claim(
                "num_iterations 16",
                "num_iterations 8",
                "lower",
                "half the passes cost quality",
                "2406.11838, section 5.2 and Table 1 (64 of 256)",
            ),
            _claim("num_iterations 16", "refresh_every 2", "same", "cached tokens do", "2503.12450"),
            _claim(
                "num_iterations 16",
                "num_head_steps 12, last_head_steps 3",
                "same",
                "fewer steps at the end do",
                "2505.20297",
            ),
            _claim(
                "guidance_scale 1.0", "num_iterations 16", "higher", "guidance helps", "2406.11838, Table 1"
            ),
        ),
        test=NanoPrompts(num=120, split="test", seed=7),
        x_label="TFLOP per picture",
        x_is="draw_tflop",
        log_x=True,
    )


def _told(setting: tuple[str, object]) -> str:
    name, value = setting
    return f"{name} {' to '.join(map(str, value)) if isinstance(value, tuple) else value}"


def _claim(first: str, second: str, expected: Expected, text: str, paper: str) -> Claim:
    return Claim(text=text, source=f"arXiv {paper}", first=first, second=second, expected=expected)
