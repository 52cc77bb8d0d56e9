"""Where an artefact comes from: the record of those that have none of their own, and the chain back to the slides.

Stores, models and heatmaps say themselves what they are made from (attributes, model.json, slide.json). What else a
study makes has a `provenance.json` beside it, as a training run has of its data. The chain is followed by hashes alone,
so that it holds wherever the folders are; where one cannot be found, its hash is what is left to say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tiling import TileStore
from tiling.core.artefact import COMMIT, PROVENANCE, content_hash, folder_faults, read_commit
from tiling.core.errors import InputError, SpecslideError
from tiling.core.files import canonical_json, sha256_file, sha256_text
from tiling.core.versions import RESEARCH_USE

_SOFTWARE = ("torch", "timm", "numpy", "matplotlib", "scikit-learn")
_TOLD_IN = {"store": "zarr.json", "model": "model.json", "heatmap": "slide.json"}
"""The file that says what such a folder was made from, by the kind of artefact."""
_MARKS = frozenset({*_TOLD_IN.values(), "evaluation.json", "stress.json", "slides.json"})
"""Files that tell an artefact whose commit.json is lost, or that version 0.1 made without one."""
_TESTS = ("evaluation", "stress", "slides")
"""Artefacts that test models or heatmaps: their recipe says what they were made from."""


class Record(BaseModel):
    """What `provenance.json` says: of the data of a training, or of a test made by version 0.1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["specslide-provenance"] = "specslide-provenance"
    version: Literal[1] = 1
    artefact: str
    """`model` for a training's data, else `tiles`, `stress` or `slides`: what was tested."""
    inputs: dict[str, Any]
    """Hashes, by what they are of."""
    settings: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    """Device and what else decides how numbers are rounded; nothing that names a machine."""
    files: dict[str, str] = {}
    """SHA-256 of the artefact's files, where no commit.json says them."""
    software: dict[str, str]
    notice: str = RESEARCH_USE


def read_record(folder: Path) -> Record | None:
    """The record in a folder; None if there is none that can be read."""
    try:
        return Record.model_validate_json((folder / PROVENANCE).read_bytes())
    except (OSError, ValidationError):
        return None


def artefacts_in(root: Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """The artefacts at or below `root`, damaged ones too; within one only where it shares its folder, as a study does.

    `on_error` is called for folders that cannot be listed.
    """
    for place, folders, files in os.walk(root, onerror=on_error):
        folder = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if COMMIT in files or not _MARKS.isdisjoint(files):
            yield folder
            try:
                shared = read_commit(folder).shared
            except SpecslideError:
                shared = _MARKS.isdisjoint(files)
            if not shared:
                folders.clear()


# ---------------------------------------------------------------------------------------------------- the chain


@dataclass(frozen=True)
class Link:
    """One artefact of a chain, and what it was made from."""

    kind: str
    """heatmap, store, slide, model, data, tiles, stress or slides."""
    name: str
    sha256: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it, by name."""
    missing: str = ""
    """Why its own record is not here; "" if it is."""
    made_from: tuple[Link, ...] = ()

    def record(self) -> dict[str, Any]:
        """The chain from here on, as JSON has it."""
        return asdict(self)


def trace(path: Path, search: Sequence[Path] = ()) -> Link:
    """The chain of a result folder, store or model, or of any file in one, back to slides and training data.

    What it names by hash is looked for in the folders `search`; none: in the study that the path lies in, or beside it.
    Raises InputError for what is of no artefact, or was changed after it was made.
    """
    folder = _artefact_of(path)
    _refuse_changed(folder, path)
    return _Chain(_Index(search or (_study_of(folder),))).of(folder)


def told(chain: Link) -> Iterator[str]:
    """The chain in lines of text, each link below what was made from it; one named before is not told again."""
    seen: set[str] = set()

    def lines(link: Link, indent: str) -> Iterator[str]:
        again = link.sha256 in seen and bool(link.made_from)
        note = f" ({link.missing})" if link.missing else " (as above)" if again else ""
        yield f"{indent}{link.kind} {link.name}, sha256 {link.sha256}{note}"
        seen.add(link.sha256)
        facts = {name: value for name, value in link.facts.items() if value not in (None, {}, "")}
        for name, value in facts.items():
            yield f"{indent}    {name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for source in () if again else link.made_from:
            yield from lines(source, indent + "  ")

    return lines(chain, "")


def _artefact_of(path: Path) -> Path:
    """The folder of the artefact that a path is or lies in. Raises InputError."""
    if not path.exists():
        raise InputError(path, "does not exist", "pass a file or folder of a result")
    place = path.resolve()
    for folder in (place, *place.parents):
        if folder.is_dir() and _kind_of(folder) is not None:
            return folder
        if (folder / "model" / "model.json").is_file():  # of a training run
            return folder / "model"
    what = "is of no artefact that says where it comes from"
    raise InputError(path, what, "pass a store, a model, a heatmap's folder, or a file of an evaluation")


def _kind_of(folder: Path) -> str | None:
    """What sort of artefact a folder holds, by the file that says it."""
    if (folder / COMMIT).is_file():
        commit = read_commit(folder)
        for kind, name in _TOLD_IN.items():
            if (folder / name).is_file() and name in commit.files:
                return kind
        if commit.recipe is not None and commit.recipe.artefact in _TESTS:
            return commit.recipe.artefact
    record = read_record(folder)
    return None if record is None or record.artefact == "model" else record.artefact


def _refuse_changed(folder: Path, path: Path) -> None:
    """Raise InputError if the file was changed after its artefact was made, or does not belong to it."""
    place = path.resolve()
    record = None if (folder / COMMIT).is_file() else read_record(folder)
    inside = place.is_relative_to(folder)
    if (inside and place.is_dir()) or place in (folder.parent, folder / (COMMIT if record is None else PROVENANCE)):
        return
    if not inside:
        known, name = _vouched_beside(folder), place.relative_to(folder.parent).as_posix()
    else:
        known = (
            record.files if record is not None else {n: str(f["sha256"]) for n, f in read_commit(folder).files.items()}
        )
        name = place.relative_to(folder).as_posix()
    if name not in known:
        what = "is no part of the artefact it lies in" if inside else "is no part of the model it lies beside"
        raise InputError(path, f"{what}, so nothing vouches for it", "pass the artefact's folder, or a file of it")
    if sha256_file(place) != known[name]:
        raise InputError(path, "was changed after it was made, so nothing vouches for it", "make it again")


def _vouched_beside(model: Path) -> dict[str, str]:
    """SHA-256 of those files of a training run that follow from its model's model.json, by name."""
    from training.models.folder import read_info  # torch takes seconds, and few pass such a file
    from training.record import metric_record

    info = read_info(model)
    known = {name: sha256 for name, sha256 in info.hashes.items() if name == PROVENANCE}  # earlier versions have none
    return known | {"metrics.json": sha256_text(canonical_json(metric_record(info)))}


def _study_of(folder: Path) -> Path:
    """The study that a folder lies in: the nearest above it with a study's record; else the folder two above."""
    for above in folder.parents:
        if (above / "study.json").is_file() or (above / "ledger.jsonl").is_file():
            return above
    return folder.parent.parent if folder.parent.parent != Path(folder.anchor) else folder.parent


class _Index:
    """The artefacts below some folders, by their hashes; looked through once, when first asked."""

    def __init__(self, roots: Iterable[Path]) -> None:
        self._roots = tuple(roots)
        self._found: dict[str, Path] | None = None
        self._damaged: list[SpecslideError] = []

    def find(self, sha256: str) -> Path | None:
        """The folder with that hash. Raises InputError if there is none, but a damaged one that it may have been."""
        if self._found is None:
            self._found = dict(self._hashed())
        place = self._found.get(sha256)
        if place is None and self._damaged:
            raise InputError(self._damaged[0].where, self._damaged[0].what, self._damaged[0].fix)
        return place

    def _hashed(self) -> Iterator[tuple[str, Path]]:
        for root in self._roots:
            for place in artefacts_in(root):
                if not (place / COMMIT).is_file():
                    continue
                try:
                    yield content_hash(place), place
                    if (place / "zarr.json").is_file():
                        yield TileStore(place).pixels_sha256, place  # as models and heatmaps know it
                except SpecslideError as error:
                    self._damaged.append(error)


class _Chain:
    """Follows what artefacts say of their origin."""

    def __init__(self, index: _Index) -> None:
        self._index = index

    def of(self, folder: Path) -> Link:
        kind = _kind_of(folder)
        if kind in _TOLD_IN and (faults := folder_faults(folder, only=frozenset({_TOLD_IN[kind]}))):
            raise InputError(folder, f"is damaged: {faults[0]}", "make it again")
        if kind == "store":
            return self._store(folder)
        if kind == "model":
            return self._model(folder)
        if kind == "heatmap":
            return self._heatmap(folder)
        return self._tested(folder)

    def _heatmap(self, folder: Path) -> Link:
        summary = _json(folder / "slide.json")
        made, slide = summary["made_from"], summary["slide"]
        hashes = [made["settings"].get(name) for name in ("store_sha256", "store_pixels_sha256")]  # labelled since?
        store = next((h for h in hashes if h and self._index.find(h)), hashes[0])
        source = self._slide(slide) if store is None else self._found(store, "store", slide["slide_id"], slide)
        models = made.get("models") or [made]
        links = [self._found(m["model_sha256"], "model", m["backbone"]) for m in models]
        facts = {"device": summary.get("device"), "settings": made["settings"], **_software(summary)}
        return Link("heatmap", folder.name, content_hash(folder), facts, made_from=(source, *links))

    def _store(self, folder: Path) -> Link:
        attributes = _json(folder / "zarr.json")["attributes"]
        facts = {"config": attributes["config"], **_software(attributes)}
        slide = self._slide(attributes["slide"])
        return Link("store", folder.stem, content_hash(folder), facts, made_from=(slide,))

    @staticmethod
    def _slide(slide: Mapping[str, Any]) -> Link:
        facts = {name: slide[name] for name in ("width", "height", "mpp", "vendor") if name in slide}
        return Link("slide", slide["slide_id"], slide["sha256"], facts)

    def _model(self, folder: Path) -> Link:
        info = _json(folder / "model.json")
        facts = {
            "backbone": info["backbone"],
            "seed": info["training"].get("seed"),
            "fold": info["training"].get("fold") if info["training"].get("folds") else None,
            "starts from": info["training"].get("weights"),
            "training key": info["hashes"].get("training"),
            **_software(info),
        }
        name = folder.parent.name if folder.name == "model" else folder.name
        data = self._data(folder, info["hashes"])
        return Link("model", name, content_hash(folder), facts, made_from=(data,))

    def _data(self, folder: Path, hashes: Mapping[str, str]) -> Link:
        """What a model has learned from, by the record in its run's folder; only if it is the one the model knows."""
        name, sha256 = "training data", hashes.get("data", "unknown")
        path = folder.parent / PROVENANCE
        record = read_record(folder.parent)
        if record is None or sha256_file(path) != hashes.get(PROVENANCE):
            what = "not here: the file provenance.json of its training run"
            return Link("data", name, sha256, missing=what)
        sources = record.inputs["sources"]
        links = tuple(self._source(source, record.inputs["kind"]) for source in sources)
        facts = {"machine": record.machine, "tiles": sum(source["tiles"] for source in sources)}
        return Link("data", name, sha256, facts, made_from=links)

    def _source(self, source: Mapping[str, Any], kind: str) -> Link:
        facts = {"split": source["split"], "case": source["case_id"], "tiles": source["tiles"]}
        if kind != "stores":
            return Link("image", source["slide_id"], source["sha256"], facts)
        found = self._index.find(source["sha256"])
        slide = Link("slide", source["slide_id"], source["slide_sha256"])
        if found is None:
            return Link("store", source["slide_id"], source["sha256"], facts, "the store is not here", (slide,))
        return Link("store", source["slide_id"], content_hash(found), facts, made_from=(slide,))

    def _tested(self, folder: Path) -> Link:
        inputs, facts, kind, sha256 = self._tested_from(folder)
        models = inputs.get("models", {"model": inputs["model"]} if "model" in inputs else {})
        links = [self._found(of, "model", name) for name, of in models.items()]
        links += [self._found(of, "heatmap", name) for name, of in inputs.get("heatmaps", {}).items()]
        return Link(kind, folder.name, sha256, facts, made_from=tuple(links))

    @staticmethod
    def _tested_from(folder: Path) -> tuple[Mapping[str, Any], dict[str, Any], str, str]:
        """Inputs, facts, kind and hash of a test, by its recipe or, of version 0.1, its record."""
        if (folder / COMMIT).is_file() and (recipe := (commit := read_commit(folder)).recipe) is not None:
            facts = {"settings": dict(recipe.settings), "device": commit.made_with.get("device")}
            return (
                recipe.inputs,
                facts
                | _software(commit.made_with if "software" in commit.made_with else {"software": commit.made_with}),
                recipe.artefact,
                content_hash(folder),
            )
        record = read_record(folder)
        if record is None:
            raise InputError(folder, "holds no artefact", "pass a file of a result")
        facts = {"settings": record.settings, "machine": record.machine, **_software(record.model_dump())}
        return record.inputs, facts, record.artefact, sha256_file(folder / PROVENANCE)

    def _found(self, sha256: str, kind: str, name: str, slide: Mapping[str, Any] | None = None) -> Link:
        """The link of an artefact with that hash, or what is known of it without."""
        place = self._index.find(sha256)
        if place is not None:
            return self.of(place)
        known = () if slide is None else (self._slide(slide),)
        return Link(kind, name, sha256, missing=f"the {kind} is not here", made_from=known)


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(path, f"cannot be read ({type(error).__name__})", "make it again") from None
    return found


def _software(record: Mapping[str, Any]) -> dict[str, Any]:
    """The version that made it."""
    software = record.get("software", {})
    return {name: software[name] for name in ("specslide", "specslide_commit") if name in software}
