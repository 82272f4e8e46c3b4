"""Recipes of evaluate: which prompts, how many pictures, which rules."""

from dataclasses import replace

from lightgen.ports.detector import DetectorConfig
from lightgen.ports.features import FeaturesConfig
from lightgen.ports.scorer import ScorerConfig
from lightgen.stages.answerer import AnswererConfig
from lightgen.stages.distill import NanoPrompts
from lightgen.stages.evaluate_config import EvaluateConfig
from lightgen.stages.fidelity import FidelityConfig
from lightgen.stages.object_judge import ObjectJudgeConfig
from lightgen.stages.question_judge import NanoQuestions, QuestionJudgeConfig
from lightgen.stages.self_test import SelfTestConfig


def nano_geneval() -> EvaluateConfig:
    """nano-GenEval: 40 test prompts of each of the six tasks, 4 pictures each; overall is the mean of tasks.

    Source: GenEval's rules; test prompts of held-out combinations.
    Hardware: two cores. Time: about 3 minutes a checkpoint.
    """
    return EvaluateConfig(
        prompts=NanoPrompts(num=240, split="test"),
        images_per_prompt=4,
    )


def nano_geneval_256() -> EvaluateConfig:
    """`nano-geneval` at 256 px, which the detector looks at in 128 px.

    Source: as `nano-geneval`. Hardware: two cores. Time: four times that of `nano-geneval`, by estimate.
    """
    return replace(nano_geneval(), height=256, width=256)


def nano_report() -> EvaluateConfig:
    """`nano-geneval` with distances to perfect renders of the same prompts, or to `--reference`.

    Source: as `nano-geneval`; features of the nano detector stand for those of DINOv2 and Inception.
    Hardware: two cores. Time: about 4 minutes a checkpoint.
    """
    return replace(nano_geneval(), fidelity=FidelityConfig())


def fidelity() -> EvaluateConfig:
    """Distances of pictures to `--reference` images: FD-DINOv2, CMMD, precision, recall, density, coverage.

    Checkpoints draw `--prompts FILE`, one picture each at 512 px. 10,000 to 50,000 pictures of both sides are
    usual. Classic FID and KID: `--fidelity.metrics fd cmmd prdc fid kid` (extra `fid`).
    Source: arXiv 2306.04675, 2401.09603, 2002.09797. Hardware: one GPU. Time: not measured.
    """
    return EvaluateConfig(
        prompts=None,
        images_per_prompt=1,
        height=512,
        width=512,
        judge=None,
        fidelity=FidelityConfig(
            metrics=("fd", "cmmd", "prdc"),
            fd=FeaturesConfig(kind="dinov2"),
            kid=FeaturesConfig(kind="inception"),
            prdc=FeaturesConfig(kind="dinov2"),
        ),
    )


def clip_score() -> EvaluateConfig:
    """Mean CLIPScore of pictures and their prompts, with an interval over prompts.

    Source: arXiv 2104.08718. Hardware: one GPU. Time: not measured.
    """
    return EvaluateConfig(
        prompts=None, images_per_prompt=1, height=512, width=512, judge=None, scorer=ScorerConfig()
    )


def geneval() -> EvaluateConfig:
    """GenEval: its 553 prompts, 4 pictures each at 512 px, judged by Mask2Former and CLIP as its authors do.

    Without `--prompts FILE` the prompts are fetched once, pinned by their hash. `--in` takes images in
    GenEval's own layout too.
    Source: arXiv 2310.11513; djghosh13/geneval @16f1681; the sizes of pictures of arXiv 2503.08619, table 2.
    Hardware: one GPU. Time: not measured.
    """
    return EvaluateConfig(
        prompts=None,
        images_per_prompt=4,
        height=512,
        width=512,
        judge=ObjectJudgeConfig(
            detector=DetectorConfig(kind="mask2former"),
            self_test=SelfTestConfig(least_right=0.9, least_overlap=0.5),
        ),
    )


def geneval_owlv2() -> EvaluateConfig:
    """`geneval` by OWLv2, a second opinion from another family of detectors; its scores are its own.

    Source: arXiv 2306.09683. Hardware: one GPU. Time: not measured.
    """
    return _judged_by("owlv2")


def geneval_rt_detr() -> EvaluateConfig:
    """`geneval` by RT-DETRv2, a second opinion by boxes of the same classes; its scores are its own.

    Source: arXiv 2407.17140. Hardware: one GPU. Time: not measured.
    """
    return _judged_by("rt-detr-v2")


def nano_geneval2() -> EvaluateConfig:
    """nano-GenEval2: 160 prompts with 3 to 10 things to get right, by questions to the nano detector.

    Source: the templates and Soft-TIFA of arXiv 2512.16853; combinations of words held out from training.
    Hardware: two cores. Time: about a minute a checkpoint.
    """
    return EvaluateConfig(prompts=NanoQuestions(num=160), images_per_prompt=2, judge=QuestionJudgeConfig())


def geneval2() -> EvaluateConfig:
    """GenEval 2 of `--prompts geneval2_data.jsonl`, a picture each, by Soft-TIFA with Qwen3-VL-8B.

    Source: arXiv 2512.16853. Hardware: one GPU of 24 GB. Time: not measured.
    """
    return EvaluateConfig(
        prompts=None,
        images_per_prompt=1,
        height=512,
        width=512,
        judge=QuestionJudgeConfig(answerer=AnswererConfig(kind="model", batch_size=8)),
    )


def dpg_bench() -> EvaluateConfig:
    """DPG-Bench of `--prompts dpg_bench.csv`, 4 pictures each, by a vision-language model's yes and no.

    Source: arXiv 2403.05135, with another answering model. Hardware: one GPU of 24 GB. Time: not measured.
    """
    config = geneval2()
    assert isinstance(config.judge, QuestionJudgeConfig)
    return replace(config, images_per_prompt=4, judge=replace(config.judge, benchmark="dpg"))


def _judged_by(kind: str) -> EvaluateConfig:
    config = geneval()
    assert isinstance(config.judge, ObjectJudgeConfig)
    detector = DetectorConfig(kind=kind)  # pyright: ignore[reportArgumentType]
    return replace(config, judge=replace(config.judge, detector=detector))
