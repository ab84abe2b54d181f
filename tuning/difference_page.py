"""Writes what differs between two archives as one page of HTML that contains its pictures.

The page needs no network and runs no script, and its policy forbids both.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

from ..archiver.archive_differences import ArchiveDifferences
from ..archiver.difference_sections import Section, archive_sections, identity_line
from .decision_changes import DecisionChange, DecisionChanges
from .decision_sections import decision_sections, verdict
from .thumbnails import thumbnail

_MAX_PICTURES = 200
_MAX_PICTURE_BYTES = 4_000_000
"""Length of all pictures of a page together; the changes beyond it are listed without one."""

_HEAD = (
    "<!doctype html><html lang='en'><meta charset='utf-8'>"
    "<meta http-equiv='Content-Security-Policy' "
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
    "<meta name='viewport' content='width=device-width, initial-scale=1'>"
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76em; margin: 2em auto; padding: 0 1em;
  overflow-wrap: anywhere; }
pre { overflow-x: auto; font-size: 13px; background: #f6f6f6; padding: .6em; }
.added { color: #1a6b1a; } .removed { color: #a00018; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 1em; }
figure { margin: 0; border: 1px solid #ddd; padding: .5em; font-size: 13px; }
figure img { display: block; max-width: 100%; margin: 0 auto .4em; min-width: 96px;
  image-rendering: pixelated; }
figure.corrected { border-color: #2a7d2a; } figure.broken { border-color: #b00020; }
small { color: #666; }
"""


def write_page(
    differences: ArchiveDifferences, decisions: DecisionChanges | None, target: Path
) -> None:
    """Write the page; an existing file is replaced.

    Args:
        differences: what differs between the archives.
        decisions: the decisions that change on a set of images; None: no images were compared.
        target: the new file.
    """
    before, after = differences.before, differences.after
    title = html.escape(
        f"{before.spec.name} {before.spec.version} and {after.spec.name} {after.spec.version}"
    )
    parts = [
        f"<h1>{title}</h1>",
        f"<p>before: {html.escape(identity_line(before))}<br>",
        f"after: {html.escape(identity_line(after))}</p>",
    ]
    if decisions is not None:
        summary = decision_sections(decisions)[0]
        parts += [_section(summary), *_pictures(decisions)]
    sections = archive_sections(differences)
    parts += [_section(each) for each in sections] or ["<p>Nothing else differs.</p>"]
    body = "\n".join(parts)
    page = f"{_HEAD}<title>{title}</title><style>{_STYLE}</style><body>{body}</body></html>\n"
    target.write_text(page, encoding="utf-8")


def _section(section: Section) -> str:
    heading = f"<h2>{html.escape(section.title)}</h2>"
    if section.is_code:
        code = "\n".join(map(_code_line, section.lines))
        return f"{heading}<pre>{code}</pre>"
    items = "".join(f"<li>{html.escape(line)}</li>" for line in section.lines)
    return f"{heading}<ul>{items}</ul>"


def _code_line(line: str) -> str:
    kind = {"+": "added", "-": "removed"}.get(line[:1])
    text = html.escape(line)
    return text if kind is None else f"<span class='{kind}'>{text}</span>"


def _pictures(decisions: DecisionChanges) -> Iterable[str]:
    """Yield a heading and the pictures for each direction in which decisions change."""
    num_pictures, num_bytes = 0, 0
    for (before, after), changes in decisions.directions.items():
        yield f"<h3>{html.escape(f'{before} -> {after}')}: {len(changes)}</h3>"
        figures = []
        for change in changes:
            picture = None
            if num_pictures < _MAX_PICTURES and num_bytes < _MAX_PICTURE_BYTES:
                picture = thumbnail(Path(change.image))
                num_pictures += 1
                num_bytes += len(picture or "")
            figures.append(_figure(change, picture))
        yield f"<div class='pictures'>{''.join(figures)}</div>"
    for image, error in decisions.errors.items():
        yield f"<p>left out: {html.escape(image)}: {html.escape(error)}</p>"


def _figure(change: DecisionChange, picture: str | None) -> str:
    what = verdict(change)
    kind = what if what in ("corrected", "broken") else "changed"
    image = f"<img src='{picture}' alt=''>" if picture else ""
    lines = [
        f"<b>{html.escape(change.image)}</b>",
        html.escape(f"{change.before} -> {change.after}"),
    ]
    if change.score_before is not None and change.score_after is not None:
        lines.append(f"score {change.score_before:.4f} -> {change.score_after:.4f}")
    if change.truth is not None:
        lines.append(f"<small>{what} shows {html.escape(change.truth)}</small>")
    return f"<figure class='{kind}'>{image}{'<br>'.join(lines)}</figure>"
