"""The stages of a study, in their order: one file each, and `STAGES`, which the plan, the run and the page go by."""

from pipeline.study.stages.bag_heatmaps import BAG_HEATMAP
from pipeline.study.stages.bags import LEARN_BAGS
from pipeline.study.stages.embed import EMBED
from pipeline.study.stages.evaluate import EVALUATE
from pipeline.study.stages.heatmap import HEATMAP
from pipeline.study.stages.report import REPORT
from pipeline.study.stages.slides import BAG_SLIDE_TEST, SLIDE_TEST
from pipeline.study.stages.stage import Artefact, Stage, Study
from pipeline.study.stages.stress import STRESS_TEST
from pipeline.study.stages.tile import TILE
from pipeline.study.stages.train import TRAIN

__all__ = ["STAGES", "Artefact", "Stage", "Study"]

STAGES: list[Stage] = [
    TILE, TRAIN, EVALUATE, STRESS_TEST, HEATMAP, SLIDE_TEST, EMBED, LEARN_BAGS, BAG_HEATMAP, BAG_SLIDE_TEST, REPORT,
]  # fmt: skip
