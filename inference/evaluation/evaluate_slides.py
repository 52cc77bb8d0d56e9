"""The verb: heatmaps and what is known of their slides -> how well slides and lesions are found.

out/slides.json     all figures       out/slides.md, slides.html     the same, to be read
out/slides.png      ROC of the slides, FROC of the lesions
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from inference.config import EvaluateSlidesConfig
from inference.evaluation.figures import slide_picture
from inference.evaluation.froc import Hits, Lesions, blank_mask, detect, hits_of, lesions_in
from inference.evaluation.operating_point import threshold_at_sensitivity
from inference.evaluation.results import (
    AtThreshold,
    SlideEvaluation,
    Slides,
    Within,
    at_threshold,
    measure,
    measure_attention,
    measure_froc,
    within,
)
from inference.exports import TABLE
from inference.recipes import slides_recipe
from inference.summary import SUMMARY, HeatmapSummary, read_summary
from tiling.annotations.rasterize import annotation_fractions, class_masks
from tiling.core.artefact import (
    atomic_folder,
    folder_faults,
    locked_folder,
    require_own,
)
from tiling.core.errors import ConfigError, InputError
from tiling.core.files import canonical_json
from tiling.core.pages import markdown_page
from tiling.core.versions import software_versions
from tiling.grid import Tiles
from tiling.manifest import ManifestRow, read_manifest
from training.evaluation.metrics import Floats
from training.evaluation.results import grouped

log = logging.getLogger(__name__)

RECORD = "slides.json"
OUTPUTS = (RECORD, "slides.md", "slides.html", "slides.png")
COLUMNS = ("site", "scanner")
MAPS = ("heatmap",)
BAG_MAPS = ("attention times the slide's probability", "probability of each tile alone")
"""What lesions are detected on. Attention is relative to each slide's largest: by the probability slides compare."""
_OF_A_SLIDE = {
    "store_pixels_sha256", "store_sha256", "features_sha256", "features_identity", "roi_sha256", "backend",
}  # fmt: skip
"""Settings in which the results of one test may differ."""


@dataclass(frozen=True)
class _Result:
    """One slide of the manifest with its finished heatmap."""

    row: ManifestRow
    folder: Path
    summary: HeatmapSummary


def evaluate_slides(
    results: Path,
    manifest: Path,
    out: Path,
    config: EvaluateSlidesConfig = EvaluateSlidesConfig(),  # noqa: B008 - frozen
    *,
    rows: Sequence[ManifestRow] | None = None,
    one_model: bool = True,
) -> SlideEvaluation:
    """Test the heatmaps `results/<slide_id>/` of a manifest's slides, and publish the files listed above as `out`.

    A slide is positive if its `label` is the heatmaps' class. An earlier evaluation in `out` is replaced.

    Args:
        results: Folder of heatmaps.
        manifest: Table of the slides.
        out: Folder of the figures.
        config: Which slides are tested, and how.
        rows: The manifest's slides with the splits that count; None: as the manifest says.
        one_model: Whether all results must be of one model; of a cross-validation they are not.

    Raises:
        InputError: Naming slide and fix: no whole result, no label, results of several models, a class is missing.
        ConfigError: A score or split that is not there; slides of val are among those tested.
        OutputError: `out` cannot be written, or holds something else.

    Example:
        >>> from inference.config import EvaluateSlidesConfig
        >>> heatmaps, manifest = Path("results/heatmaps"), Path("cohort/manifest.csv")
        >>> found = evaluate_slides(heatmaps, manifest, Path("slides"), EvaluateSlidesConfig(resamples=10))
        >>> "top5_mean" in found.scores
        True
    """
    rows = read_manifest(manifest) if rows is None else rows
    split = config.split or ("test" if any(row.split == "test" for row in rows) else "all")
    require_own(out, RECORD, "an evaluation of slides")
    found = [_result(results, row, manifest) for row in _of_split(rows, split, manifest)]
    score = config.score or ("top5_mean" if found[0].summary.bag is None else "bag_probability")
    config = config.model_copy(update={"split": split, "score": score})
    val = [] if config.sensitivity is None else _of_split(rows, "val", manifest)
    chosen_on = [_result(results, row, manifest) for row in val]
    made_from = _made_from([*found, *chosen_on], one_model)
    slides = _slides_of(found, manifest)
    if score not in slides.scores:
        raise ConfigError("--score", f"{score!r} is no score of these results", f"use {', '.join(slides.scores)}")
    _require_both(slides, f"{manifest}, split {split}" if split != "all" else manifest, found[0])
    drawing = {"resamples": config.resamples, "seed": config.seed}
    hits, notes = _hits(found, config)
    if empty := [result.row.slide_id for result in found if not result.summary.tiles]:
        what = f"Of {len(empty)} slides nothing was analysed, {empty[0]} among them: they count with the score 0."
        notes = [what, *notes]
    cases = np.array([result.row.case_id for result in found])
    cases_of_hits = cases[[place for place, _ in hits]] if hits else cases[:0]
    by_attention = found[0].summary.bag is not None
    frocs = [
        measure_froc([maps[k] for _, maps in hits], cases_of_hits, config.separation_um, of=of, **drawing)
        for k, of in enumerate(BAG_MAPS if by_attention else MAPS)
    ]
    inside = {place: within for place, result in enumerate(found) if (within := _inside(result, config))}
    evaluation = SlideEvaluation(
        positive_class=found[0].summary.positive_class,
        split=split,
        score=score,
        resamples=config.resamples,
        scores={name: measure(slides, name, **drawing) for name in slides.scores},
        groups={
            column: {name: measure(slides.chosen(which), score, **drawing) for name, which in grouped(names).items()}
            for column in COLUMNS
            if ((names := np.array([getattr(r.row, column) or "" for r in found])) != "").any()
        },
        at_threshold=_at_threshold(slides, _slides_of(chosen_on, manifest), score, config, manifest),
        froc=frocs[0],
        tiles_froc=frocs[1] if by_attention else None,
        attention=measure_attention(list(inside.values()), cases[list(inside)], **drawing),
        notes=tuple(notes),
        slides=_listed(slides),
        made_from=made_from,
    )
    for note in evaluation.notes:
        log.warning("%s", note)
    picture = slide_picture(evaluation, slides, [maps[0] for _, maps in hits] if frocs[0] else [], seed=config.seed)
    recipe = slides_recipe(results, [result.row for result in (*found, *chosen_on)], config)
    with locked_folder(out):
        require_own(out, RECORD, "an evaluation of slides")
        with atomic_folder(out, recipe, made_with=software_versions("numpy", "matplotlib")) as partial:
            (partial / "slides.png").write_bytes(picture)
            (partial / "slides.md").write_text(evaluation.page(), encoding="utf-8")
            (partial / "slides.html").write_text(markdown_page(evaluation.page(), ["slides.png"]), encoding="utf-8")
            (partial / RECORD).write_text(canonical_json(evaluation.record()), encoding="utf-8")
    return evaluation


def _of_split(rows: Sequence[ManifestRow], split: str, manifest: Path) -> list[ManifestRow]:
    if split == "all":
        return list(rows)
    chosen = [row for row in rows if row.split == split]
    if not chosen:
        known = sorted({row.split for row in rows if row.split})
        fix = f"use {', '.join([*known, 'all'])}" if known else "pass --split all, or add a column split"
        raise InputError(manifest, f"has no slide of the split {split}", fix)
    return chosen


def _result(results: Path, row: ManifestRow, manifest: Path) -> _Result:
    """The heatmap of a slide. Raises InputError if it is not there, or not whole."""
    folder = results / row.slide_id
    if not (folder / SUMMARY).is_file():
        what = f"has no result in {results}"
        fix = f"make it with specslide heatmap --out {results}, or take the slide out of the manifest"
        raise InputError(f"{manifest}, slide {row.slide_id}", what, fix)
    if faults := folder_faults(folder, only=frozenset({SUMMARY, TABLE})):
        raise InputError(folder, f"is damaged: {faults[0]}", "make the heatmap again with --overwrite")
    return _Result(row, folder, read_summary(folder))


def _made_from(found: Sequence[_Result], one_model: bool) -> dict[str, Any]:
    """Model and settings of the results, each once. Raises InputError naming two that differ, if one model is asked."""
    makers = [_maker(result) for result in found]
    if not one_model:
        made = {canonical_json(maker): maker for maker in makers}
        return {"models": [made[text] for text in sorted(made)]}
    flat = [{k: v for k, v in maker.items() if k != "settings"} | maker["settings"] for maker in makers]
    for result, other in zip(found, flat, strict=True):
        if differing := sorted(k for k in flat[0].keys() | other.keys() if flat[0].get(k) != other.get(k)):
            what = f"were made by different models or settings: {', '.join(differing)}"
            raise InputError(f"{found[0].folder} and {result.folder}", what, "make them alike: specslide heatmap")
    return makers[0]


def _maker(result: _Result) -> dict[str, Any]:
    """Model and settings of a result, less what may be each slide's own: its store and region, the order of an
    ensemble, the model's name, which its hash says too, and the backend, since they agree to 1e-4.
    """
    made = {k: v for k, v in result.summary.made_from.items() if k not in ("backend", "model")}
    made["settings"] = {k: v for k, v in made.get("settings", {}).items() if k not in _OF_A_SLIDE}
    if "models" in made:
        models = [{k: v for k, v in model.items() if k != "model"} for model in made["models"]]
        made["models"] = sorted(models, key=canonical_json)
    return made | {"positive_class": result.summary.positive_class}


def _slides_of(found: Sequence[_Result], manifest: Path) -> Slides:
    """Truth and scores of the slides. A slide without tiles has the lowest score of all: nothing calls it."""
    numbers = [result.summary.numbers() for result in found]
    known = [values for values, result in zip(numbers, found, strict=True) if result.summary.tiles]
    names = [name for name in (numbers[0] if numbers else ()) if all(values[name] is not None for values in known)]
    return Slides(
        slide_id=np.array([result.row.slide_id for result in found], np.str_),
        case_id=np.array([result.row.case_id for result in found], np.str_),
        positive=np.array([_is_positive(result, manifest) for result in found], np.bool_),
        scores={name: np.array([values[name] or 0.0 for values in numbers], np.float64) for name in names},
    )


def _is_positive(result: _Result, manifest: Path) -> bool:
    where, classes = f"{manifest}, slide {result.row.slide_id}", result.summary.classes
    if not result.row.label:
        fix = f"add {' or '.join(classes)} in the column label, or take the slide out of the manifest"
        raise InputError(where, "has no label", fix)
    if result.row.label not in classes:
        what = f"the label {result.row.label!r} is none of the model's classes"
        raise InputError(where, what, f"use {', '.join(classes)}")
    return bool(result.row.label == result.summary.positive_class)


def _require_both(slides: Slides, where: object, example: _Result) -> None:
    if slides.positive.all() or not slides.positive.any():
        name = example.summary.positive_class
        what = f"all {len(slides.positive)} slides are {'' if slides.positive.all() else 'not '}{name}"
        raise InputError(
            where, f"{what}, so there is nothing to compare", "add slides of the other class, or pass another --split"
        )


def _at_threshold(
    slides: Slides, val: Slides, score: str, config: EvaluateSlidesConfig, manifest: Path
) -> AtThreshold | None:
    sensitivity = config.sensitivity
    if sensitivity is None:
        return None
    if set(val.slide_id.tolist()) & set(slides.slide_id.tolist()):
        what = "the slides that the threshold is chosen on are among those tested"
        raise ConfigError("--sensitivity", what, "pass --split test, or leave it out")
    if not val.positive.any():
        fix = "add positive slides of that split, or leave out --sensitivity"
        raise InputError(f"{manifest}, split val", "has no positive slide to choose a threshold on", fix)
    threshold = threshold_at_sensitivity(val.scores[score], val.positive, sensitivity)
    chosen = ("val", sensitivity, int(val.positive.sum()))
    return at_threshold(slides, score, threshold, chosen, resamples=config.resamples, seed=config.seed)


def _hits(found: Sequence[_Result], config: EvaluateSlidesConfig) -> tuple[list[tuple[int, list[Hits]]], list[str]]:
    """The slides whose lesions are known, by their place, with what detections on each of their maps hit; and what was
    left out.
    """
    hits, unknown, drawn = [], [], set[str]()
    lesion_classes, separation_um = config.lesion_classes, config.separation_um
    if not any(result.row.annotation for result in found):
        return [], []
    for place, result in enumerate(found):
        positive = result.row.label == result.summary.positive_class
        annotation = result.row.annotation
        if annotation is not None:
            lesions, names = _lesions(result, annotation, config)
            hits.append((place, _slide_hits(result, lesions, separation_um)))
            drawn |= names
        elif not positive:
            hits.append((place, _slide_hits(result, None, separation_um)))
        else:
            unknown.append(result.row.slide_id)
    if absent := [name for name in lesion_classes if name not in drawn]:
        fix = f"use some of {', '.join(sorted(drawn))}" if drawn else "draw the lesions"
        raise ConfigError("--lesions", f"no tested slide has annotations of the class {absent[0]!r}", fix)
    if not unknown:
        return hits, []
    left_out = f"The lesions of {len(unknown)} slides are not known, {unknown[0]} among them: FROC leaves them out. "
    return hits, [left_out + "Their annotations are missing: GeoJSON of QuPath, XML of ASAP, or a label image."]


def _lesions(result: _Result, annotation: Path, config: EvaluateSlidesConfig) -> tuple[Lesions, set[str]]:
    """The lesions of the classes that are, and the names of all classes drawn on the slide.

    Raises InputError for a positive slide on which none of them is drawn.
    """
    grid, name = result.summary.grid, result.summary.positive_class
    blank = blank_mask(grid)
    drawn = class_masks(annotation, result.summary.slide.frame(), blank, config.annotation)
    wanted = config.lesion_classes or (name,)
    masks = [drawn[wish].values for wish in wanted if wish in drawn]
    if not masks and result.row.label == name:
        what = f"marks no {' or '.join(wanted)}, and the slide is {name}"
        fix = f"name its classes with --lesions: {', '.join(drawn)}" if drawn else "draw the lesions"
        raise InputError(annotation, what, fix)
    whole = replace(blank, values=np.logical_or.reduce([blank.values, *masks]))
    return lesions_in(whole, grid.slide_mpp), set(drawn)


def _slide_hits(result: _Result, lesions: Lesions | None, separation_um: float) -> list[Hits]:
    """What the detections on each of a slide's maps hit."""
    bag, probability = result.summary.bag, f"prob_{result.summary.positive_class}"
    if bag is None:
        maps, tiles = _tiles_of(result, probability)
    else:
        (relative, alone), tiles = _tiles_of(result, "relative_attention", probability)
        maps = [relative * (bag.probability or 0.0), alone]
    return [hits_of(detect(values, tiles, separation_um=separation_um), lesions) for values in maps]


def _inside(result: _Result, config: EvaluateSlidesConfig) -> Within | None:
    """How well a positive slide's attention, and its tiles' probabilities, tell the tiles of its lesions from others.

    Tiles at a lesion's edge, of which less than a half is lesion, are neither. None without attention or annotation,
    and where all tiles are alike.
    """
    summary, annotation = result.summary, result.row.annotation
    if summary.bag is None or annotation is None or result.row.label != summary.positive_class:
        return None
    (attention, probability), tiles = _tiles_of(result, "attention", f"prob_{summary.positive_class}")
    drawn = annotation_fractions(annotation, tiles, summary.slide.frame(), config.annotation)
    wanted = config.lesion_classes or (summary.positive_class,)
    lesion = np.zeros(len(tiles)) + sum(drawn[name] for name in wanted if name in drawn)
    return within(attention, probability, lesion)


def _tiles_of(result: _Result, *names: str) -> tuple[list[Floats], Tiles]:
    """Columns of a heatmap's table, (N,) each, and the N tiles. Raises InputError for a table that cannot be read."""
    try:
        read = pyarrow.parquet.read_table(result.folder / TABLE, columns=[*names, "minx", "miny"])
        *values, x0, y0 = (read[name].to_numpy() for name in (*names, "minx", "miny"))
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise InputError(result.folder / TABLE, "cannot be read", "make the heatmap again with --overwrite") from error
    return values, Tiles(result.summary.grid, x0, y0)


def _listed(slides: Slides) -> tuple[dict[str, Any], ...]:
    facts = zip(slides.slide_id.tolist(), slides.case_id.tolist(), slides.positive.tolist(), strict=True)
    return tuple(
        {"slide_id": slide, "case_id": case, "positive": positive}
        | {"scores": {name: float(values[i]) for name, values in slides.scores.items()}}
        for i, (slide, case, positive) in enumerate(facts)
    )
