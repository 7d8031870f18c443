"""The site: pages of docs/ and generated ones, as HTML and as Markdown, llms.txt and llms-full.txt.

The sources stay readable where Markdown is GitHub's: `--8<-- "NAME.md"` alone on a line is replaced by
docs/snippets/NAME.md, links to files beside docs/ become text, and the first sentence of a page is its description.
The skills for agents are pages, too; their Markdown is the files of skills/ as they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.api.docs_page.page import SITE, digest, explorer
from tools.checkout import ROOT
from tools.docs.reference import document, reference

DOCS, SKILLS, HERE = ROOT / "docs", ROOT / "skills", Path(__file__).parent
CONFIG = HERE / "zensical.toml"
SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
HEADING = re.compile(r"^# (.+)$", re.MULTILINE)
SENTENCE = re.compile(r".+?[.!?](?= |$)")
PARAGRAPH = re.compile(r"(?!```|\d+\. )[\w`*\[$\"]")
INLINE_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)
POLICY = (
    "default-src 'none'; script-src 'self' {}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'"
)


def build(target: Path = SITE) -> None:
    """Write the whole site into `target`, which is replaced. Raises CalledProcessError if zensical refuses a page."""
    all_pages = pages()
    with tempfile.TemporaryDirectory() as directory:
        project = Path(directory)
        for name, text in all_pages.items():
            front_matter = f"---\ndescription: {_quoted(description(text))}\n---\n"
            _write(project / "pages" / name, f"{front_matter}\n{FRONT_MATTER.sub('', text)}")
        for path in DOCS.rglob("*.*"):
            if path.suffix != ".md":
                _copy(path, project / "pages" / path.relative_to(DOCS))
        _copy(HERE / "site.css", project / "pages/assets/site.css")
        _copy(ROOT / "app/web/static/logo.svg", project / "pages/assets/logo.svg")
        _copy(CONFIG, project / CONFIG.name)
        zensical = [sys.executable, "-m", "zensical", "build", "--strict", "--config-file", str(project / CONFIG.name)]
        subprocess.run(zensical, check=True)
        _complete(project / "site", all_pages)
        shutil.rmtree(target, ignore_errors=True)
        shutil.move(project / "site", target)
    print(f"{len(all_pages)} pages in {target}")


def _complete(site: Path, all_pages: dict[str, str]) -> None:
    """Add what zensical does not make: Markdown, llms.txt, the explorer, policies."""
    for name in ("404.html", "sitemap.xml"):  # both need the address of the site
        (site / name).unlink()
    for name, text in (all_pages | llms_texts(all_pages)).items():
        _write(site / name, text)
    _write(site / "api-explorer" / "index.html", explorer(document(), can_send=False))
    for path in site.rglob("*.html"):
        is_front = path.parent == site
        markdown = "index.md" if is_front else f"../{path.parent.name}.md"
        has_markdown = is_front or path.parent.with_suffix(".md").exists()
        _write(path, with_head(path.read_text(encoding="utf-8"), markdown if has_markdown else None))


def pages() -> dict[str, str]:
    """{path on the site: text} of every page, with its snippets, and without links out of the site."""
    paths = [path for path in sorted(DOCS.rglob("*.md")) if "snippets" not in path.parts]
    written = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    skills = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in SKILLS.rglob("*.md")}
    return {name: _self_contained(name, text) for name, text in (written | reference()).items()} | skills


def _self_contained(name: str, text: str) -> str:
    def as_text(link: re.Match[str]) -> str:
        path = (DOCS / name / ".." / link[3]).resolve()
        if path.is_relative_to(DOCS):
            return link[0]
        shown = path.relative_to(ROOT).as_posix()
        if path.is_relative_to(SKILLS):
            return f"[{link[2]}]({'../' * name.count('/')}{shown})"
        return link[2] if shown in link[2] else f"{link[2]} (`{shown}`)"

    with_snippets = SNIPPET.sub(lambda found: (DOCS / "snippets" / found[1]).read_text(encoding="utf-8"), text)
    return LINK.sub(as_text, with_snippets)


def navigation() -> dict[str, list[str]]:
    """{title of a part: paths of its pages}, in the order of the site; the first part is the front page alone."""
    return {title: list(_paths(entry)) for entry in config()["nav"] for title, entry in _titled(entry)}


def config() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(CONFIG.read_text(encoding="utf-8"))["project"]
    return project


def _titled(entry: Any) -> Iterator[tuple[str, Any]]:
    yield from entry.items() if isinstance(entry, dict) else [("", entry)]


def _paths(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield from [entry] if entry.endswith(".md") else []
    else:
        for each in entry.values() if isinstance(entry, dict) else entry:
            yield from _paths(each)


def llms_texts(pages: Mapping[str, str]) -> dict[str, str]:
    """llms.txt by llmstxt.org, with links relative to itself, and llms-full.txt: all pages, in the site's order."""
    project, parts = config(), navigation()
    lists = [
        f"## {title or 'Overview'}\n\n"
        + "".join(f"- [{title_of(pages[name])}]({name}): {description(pages[name])}\n" for name in names)
        for title, names in parts.items()
    ]
    head = f"# {project['site_name']}\n\n> {project['site_description']}\n"
    whole = [f"<!-- {name} -->\n\n{pages[name]}" for names in parts.values() for name in names]
    return {"llms.txt": "\n".join([head, *lists]), "llms-full.txt": "\n".join([head, *whole])}


def title_of(text: str) -> str:
    found = HEADING.search(text)
    return found[1].replace("`", "") if found else ""


def description(text: str) -> str:
    """The first sentence before the first section, without markup; of a page that begins with one, the sections."""
    lead, _, sections = text.partition("\n## ")
    paragraph = next((each for each in lead.split("\n\n")[1:] if PARAGRAPH.match(each)), "")
    plain = re.sub(r"[`*]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split())))
    sentence = SENTENCE.match(plain)
    headings = re.findall(r"^## (.+)$", f"## {sections}", re.MULTILINE)
    return (sentence[0] if sentence else plain.rstrip(":")) or textwrap.shorten("; ".join(headings), 200)


def with_head(html: str, markdown: str | None) -> str:
    """The page with a content security policy that names its inline scripts by their digests, and a link to its
    Markdown."""
    digests = dict.fromkeys(map(digest, INLINE_SCRIPT.findall(html)))
    policy = POLICY.format(" ".join(f"'{each}'" for each in digests))
    head = f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">'
    if markdown:
        head += f'<link rel="alternate" type="text/markdown" href="{markdown}">'
    return html.replace("<head>", head, 1)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"  # of YAML


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
