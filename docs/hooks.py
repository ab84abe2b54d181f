"""A hook of MkDocs: files of the repository that the pages link to become part of the site."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_LINK = re.compile(r"\]\(\.\./((?:\.\./)*)([^)#]+)")
_FOLDER = "repository"
"""The folder of the site that holds those files, under their paths in the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the linked files."""
    root = Path(config.docs_dir).parent
    for page in list(files.documentation_pages()):
        if not page.src_uri.endswith(".md"):
            continue
        for up, target in _LINK.findall(page.content_string):
            place = f"{_FOLDER}/{target}"
            outside = page.src_uri.count("/") == up.count("../")
            if outside and (root / target).is_file() and place not in files.src_uris:
                files.append(File.generated(config, place, abs_src_path=str(root / target)))
    return files


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Let the links point to the copies."""

    def replaced(link: re.Match[str]) -> str:
        place = f"{_FOLDER}/{link[2]}"
        return f"]({link[1]}{place}" if place in files.src_uris else link[0]

    return _LINK.sub(replaced, markdown)
