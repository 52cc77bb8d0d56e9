"""Where an artefact comes from: the chain back to its slides, its model and the data that was trained on.

What an artefact was made from is in its commit.json, with names and numbers in its attributes, model.json or
slide.json; a training says in `provenance.json` what it learned from, as version 0.1 did of its tests. The chain is
followed by hashes alone, so that it holds wherever the folders are.
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
from tiling.core.files import read_json, sha256_file
from tiling.core.versions import RESEARCH_USE
from tiling.stores.features import FeatureStore, is_feature_store

_MARK = {
    "store": "zarr.json", "model": "model.json", "heatmap": "slide.json",
    "evaluation": "evaluation.json", "stress": "stress.json", "slides": "slides.json",
}  # fmt: skip
"""The file by which a folder is known whose commit.json is lost or, of version 0.1, has no recipe."""
_DESCRIBED = ("store", "model", "heatmap")
"""Artefacts that describe themselves in that file."""
_TRACED = (*_MARK, "features", "training", "export")


class Record(BaseModel):
    """The content of `provenance.json`: of the data of a training, or of a test made by version 0.1."""

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
    """The artefacts at or below `root`, damaged ones too; inside one only those that share its folder, as in a study.

    `on_error` is called for folders that cannot be listed.
    """
    for place, folders, files in os.walk(root, onerror=on_error):
        folder = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        marked = not set(_MARK.values()).isdisjoint(files)
        if COMMIT in files or marked:
            yield folder
            try:
                shared = read_commit(folder).shared
            except SpecslideError:
                shared = not marked
            if not shared:
                folders.clear()


# ---------------------------------------------------------------------------------------------------- the chain


@dataclass(frozen=True)
class Link:
    """An artefact in a chain of provenance, and the artefacts it was made from."""

    kind: str
    """heatmap, store, slide, model, data, evaluation, stress, slides or export."""
    name: str
    sha256: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it, by name."""
    missing: str = ""
    """Why its own record is not here; "" if it is."""
    made_from: tuple[Link, ...] = ()

    def record(self) -> dict[str, Any]:
        """The chain from here on, ready for JSON."""
        return asdict(self)


def trace(path: Path, search: Sequence[Path] = ()) -> Link:
    """The chain of a result folder, store or model, or of any file in one, back to slides and training data.

    What it names by hash is looked for in the folders `search`; none: in the study that the path lies in, or beside it.
    Raises InputError for what is of no artefact, or was changed after it was made.
    """
    folder = _artefact_of(path)
    _refuse_changed(folder, path)
    if (folder / "model" / COMMIT).is_file():  # of a training
        folder /= "model"
    return _Chain(_Index(search or (_study_of(folder),))).of(folder)


_SHOWN, _HASH_SHOWN, _FACT_SHOWN = 4, 12, 100


def page_of(chain: Link) -> Iterator[str]:
    """The chain in lines that fit a page: of many sources a few and their number; hashes and facts are short."""
    seen: set[str] = set()

    def lines(link: Link, indent: str) -> Iterator[str]:
        again = link.sha256 in seen and bool(link.made_from)
        note = f" ({link.missing})" if link.missing else " (as above)" if again else ""
        facts = "" if again else "; ".join(_short_facts(link.facts))
        yield f"{indent}{link.kind} {link.name}, sha256 {link.sha256[:_HASH_SHOWN]}{note}" + f"; {facts}" * bool(facts)
        seen.add(link.sha256)
        if again:
            return
        kinds: dict[str, list[Link]] = {}
        for source in link.made_from:
            kinds.setdefault(source.kind, []).append(source)
        for kind, sources in kinds.items():
            for source in sources[:_SHOWN]:
                yield from lines(source, indent + "  ")
            if len(sources) > _SHOWN:
                yield f"{indent}  and {len(sources) - _SHOWN:,} more of kind {kind}"

    return lines(chain, "")


def _short_facts(facts: Mapping[str, Any]) -> Iterator[str]:
    """Facts in few words; of settings those that fit."""
    for name, value in facts.items():
        if value in (None, {}, ""):
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if name.endswith("sha256") or len(text) > _FACT_SHOWN:
            continue
        yield f"{name}: {text}"


def lines_of(chain: Link) -> Iterator[str]:
    """All of the chain in lines of text, each link below what was made from it, and listed once."""
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
        if folder.is_dir() and (_kind_of(folder) is not None or (folder / "model" / "model.json").is_file()):
            return folder
    what = "is of no artefact that says where it comes from"
    raise InputError(path, what, "pass a store, a model, a heatmap's folder, or a file of an evaluation")


def _kind_of(folder: Path) -> str | None:
    """What sort of artefact with a chain a folder holds; None: none."""
    if (folder / COMMIT).is_file():
        commit = read_commit(folder)
        if commit.recipe is not None:
            return commit.recipe.artefact if commit.recipe.artefact in _TRACED else None
        return next((kind for kind in _DESCRIBED if _MARK[kind] in commit.files), None)
    record = read_record(folder)
    return None if record is None or record.artefact == "model" else record.artefact


def _refuse_changed(folder: Path, path: Path) -> None:
    """Raise InputError if a file was changed after its artefact was made, or does not belong to it."""
    place = path.resolve()
    if (folder / COMMIT).is_file():
        known, itself = {name: str(of["sha256"]) for name, of in read_commit(folder).files.items()}, COMMIT
    else:
        record = read_record(folder)
        known, itself = {} if record is None else record.files, PROVENANCE
    name = place.relative_to(folder).as_posix()
    if place.is_dir() or name == itself:
        return
    if name not in known:
        what = "is no part of the artefact it lies in, so nothing vouches for it"
        raise InputError(path, what, "pass the artefact's folder, or a file of it")
    if sha256_file(place) != known[name]:
        raise InputError(path, "was changed after it was made, so nothing vouches for it", "make it again")


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
                    if (place / "zarr.json").is_file():  # as models and heatmaps know it
                        known = FeatureStore(place).identity if is_feature_store(place) else None
                        yield known or TileStore(place).pixels_sha256, place
                except SpecslideError as error:
                    self._damaged.append(error)


class _Chain:
    """Follows what artefacts say of their origin."""

    def __init__(self, index: _Index) -> None:
        self._index = index

    def of(self, folder: Path) -> Link:
        """The link of an artefact. Raises InputError for one that does not describe itself as specslide does."""
        try:
            return self._described(folder)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            what = "says otherwise than specslide does where it comes from"
            raise InputError(folder, what, "make it again") from error

    def _described(self, folder: Path) -> Link:
        kind = _kind_of(folder)
        if kind == "features":
            return self._features(folder)
        if kind not in _DESCRIBED:
            return self._tested(folder)
        if faults := folder_faults(folder, only=frozenset({_MARK[kind]})):
            raise InputError(folder, f"is damaged: {faults[0]}", "make it again")
        described = {"store": self._store, "model": self._model, "heatmap": self._heatmap}
        return described[kind](folder, read_json(folder / _MARK[kind]))

    def _heatmap(self, folder: Path, summary: Mapping[str, Any]) -> Link:
        made, slide = summary["made_from"], summary["slide"]
        kind = "features" if "features_sha256" in made["settings"] else "store"
        names = (
            ("features_sha256", "features_identity") if kind == "features" else ("store_sha256", "store_pixels_sha256")
        )
        hashes = [made["settings"].get(name) for name in names]  # labelled since?
        store = next((h for h in hashes if h and self._index.find(h)), hashes[0])
        source = self._slide(slide) if store is None else self._found(store, kind, slide["slide_id"], slide)
        models = made.get("models") or [made]
        links = [self._found(m["model_sha256"], "model", m.get("model") or m["backbone"]) for m in models]
        facts = {"device": summary.get("device"), "settings": made["settings"], **_software(summary)}
        return Link("heatmap", folder.name, content_hash(folder), facts, made_from=(source, *links))

    def _store(self, folder: Path, group: Mapping[str, Any]) -> Link:
        attributes = group["attributes"]
        facts = {"config": attributes["config"], **_software(attributes)}
        slide = self._slide(attributes["slide"])
        return Link("store", folder.stem, content_hash(folder), facts, made_from=(slide,))

    def _features(self, folder: Path) -> Link:
        """Features, of a store or a slide, by an encoder."""
        if faults := folder_faults(folder, only=frozenset({_MARK["store"]})):
            raise InputError(folder, f"is damaged: {faults[0]}", "make it again")
        store, recipe = FeatureStore(folder), read_commit(folder).recipe
        made_of = None if recipe is None else recipe.inputs.get("store")
        slide = store.slide.model_dump(mode="json")
        source = self._slide(slide) if made_of is None else self._found(made_of, "store", store.slide_id, slide)
        of = store.encoder
        encoder = Link("encoder", of.name, of.sha256 or "unknown", {"licence": of.licence})
        if of.kind == "model":
            encoder = self._found(of.sha256, "model", of.name)
        facts = {"settings": store.attributes.settings, **_software(store.attributes.model_dump())}
        return Link("features", store.slide_id, content_hash(folder), facts, made_from=(source, encoder))

    @staticmethod
    def _slide(slide: Mapping[str, Any]) -> Link:
        facts = {name: slide[name] for name in ("width", "height", "mpp", "vendor") if name in slide}
        return Link("slide", slide["slide_id"], slide["sha256"], facts)

    def _model(self, folder: Path, info: Mapping[str, Any]) -> Link:
        facts = {
            "backbone": info["backbone"] if "backbone" in info else f"{info['head']} on {info['encoder']['name']}",
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
        if kind not in ("stores", "bags"):
            return Link("image", source["slide_id"], source["sha256"], facts)
        found, what = self._index.find(source["sha256"]), "store" if kind == "stores" else "features"
        slide = Link("slide", source["slide_id"], source["slide_sha256"])
        if found is None:
            return Link(what, source["slide_id"], source["sha256"], facts, f"the {what} is not here", (slide,))
        return Link(what, source["slide_id"], content_hash(found), facts, made_from=(slide,))

    def _tested(self, folder: Path) -> Link:
        """A test or an export: by its recipe or, of version 0.1, its record."""
        if (folder / COMMIT).is_file() and (recipe := (commit := read_commit(folder)).recipe) is not None:
            kind, inputs, sha256 = recipe.artefact, recipe.inputs, content_hash(folder)
            facts = {"settings": dict(recipe.settings), "device": commit.made_with.get("device")}
            facts |= _software({"software": commit.made_with, **commit.made_with})
        elif (record := read_record(folder)) is not None:
            kind, inputs, sha256 = record.artefact, record.inputs, sha256_file(folder / PROVENANCE)
            facts = {"settings": record.settings, "machine": record.machine, **_software(record.model_dump())}
        else:
            raise InputError(folder, "holds no artefact", "pass a file of a result")
        models = inputs.get("models", {"model": inputs["model"]} if "model" in inputs else {})
        links = [self._found(of, "model", name) for name, of in models.items()]
        links += [self._found(of, "heatmap", name) for name, of in inputs.get("heatmaps", {}).items()]
        return Link(kind, folder.name, sha256, facts, made_from=tuple(links))

    def _found(self, sha256: str, kind: str, name: str, slide: Mapping[str, Any] | None = None) -> Link:
        """The link of an artefact with that hash, or what is known of it without."""
        place = self._index.find(sha256)
        if place is not None:
            return self.of(place)
        known = () if slide is None else (self._slide(slide),)
        return Link(kind, name, sha256, missing=f"the {kind} is not here", made_from=known)


def _software(record: Mapping[str, Any]) -> dict[str, Any]:
    """The version that made it."""
    software = record.get("software", {})
    return {name: software[name] for name in ("specslide", "specslide_commit") if name in software}
