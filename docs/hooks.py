"""A hook of MkDocs that copies files to which the pages link, such as code, into the site."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_LINK = re.compile(r"\]\(\.\./((?:\.\./)*)([^)#]+)")
_FOLDER = "repository"
"""Folder of the site that has the copies, under their paths in the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file outside ``docs`` to which a page links."""
    root = Path(config.docs_dir).parent
    for page in list(files.documentation_pages()):
        if not page.src_uri.endswith(".md"):
            continue
        for up, target in _LINK.findall(page.content_string):
            copy = f"{_FOLDER}/{target}"
            is_outside = page.src_uri.count("/") == up.count("../")
            if is_outside and (root / target).is_file() and copy not in files.src_uris:
                files.append(File.generated(config, copy, abs_src_path=str(root / target)))
    return files


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Make the links of a page point to the copies."""

    def to_copy(link: re.Match[str]) -> str:
        copy = f"{_FOLDER}/{link[2]}"
        return f"]({link[1]}{copy}" if copy in files.src_uris else link[0]

    return _LINK.sub(to_copy, markdown)
