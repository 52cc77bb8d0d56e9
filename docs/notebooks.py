"""A hook of MkDocs: notebooks in docs/ as pages, with the outputs that they were saved with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page `NAME.md` for each notebook `NAME.ipynb`, which stays beside it to be downloaded."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb") and file.abs_src_path:
            notebook = json.loads(Path(file.abs_src_path).read_text(encoding="utf-8"))
            page = file.src_uri.removesuffix(".ipynb") + ".md"
            link = f"[This page as a notebook]({Path(file.src_uri).name})"
            files.append(File.generated(config, page, content="\n\n".join([*map(cell_text, notebook["cells"]), link])))
    return files


def cell_text(cell: dict[str, Any]) -> str:
    """A cell and its outputs as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    return "\n\n".join([_fenced(source, "python"), *map(_output_text, cell.get("outputs", []))])


def _output_text(output: dict[str, Any]) -> str:
    """What a cell printed, returned or drew."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = "".join(data["image/png"]).replace("\n", "")
        return f"![What the cell above draws](data:image/png;base64,{picture})"
    return _fenced("".join(output.get("text", data.get("text/plain", ""))), "text")


def _fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.strip()}\n```"
