"""The built site: links and anchors, no other host, every page in the navigation and in llms.txt."""

from __future__ import annotations

import re
from collections import Counter
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest
from markdown import Markdown
from markdown_it import MarkdownIt

from tests.test_docs import ROOT
from tools.docs.site import DOCS, FRONT_MATTER, SKILLS, config, description, navigation, pages, title_of

pytestmark = pytest.mark.extended("the documentation's site is built once")
HOST = "http://site"
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
BLOCKS = ("li", "tr", "td", "pre", "h1", "h2", "h3", "h4", "blockquote")


class Page(HTMLParser):
    def __init__(self, site: Path, path: Path) -> None:
        super().__init__()
        self.url = f"{HOST}/{path.relative_to(site).as_posix().removesuffix('index.html')}"
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.tags = Counter[str]()
        self.head: dict[str, str] = {}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags[tag] += 1
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(urljoin(self.url, given["href"]))
        if (source := LOADED.get(tag)) and source in given:
            self.loaded.append(urljoin(self.url, given[source]))
        if tag == "meta":
            self.head[given.get("name") or given.get("http-equiv", "")] = given.get("content", "")


class Site:
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def pages(self) -> dict[str, Page]:
        found = (Page(self.directory, path) for path in sorted(self.directory.rglob("*.html")))
        return {page.url: page for page in found}

    def has(self, url: str) -> bool:
        """Whether the URL is a file of the site, with the element that its fragment names."""
        parts = urlsplit(url)
        path = self.directory / unquote(parts.path).lstrip("/")
        if path.is_dir():
            path, page = path / "index.html", self.pages.get(f"{HOST}{parts.path}")
            return page is not None and (not parts.fragment or unquote(parts.fragment) in page.ids)
        return path.is_file()


@pytest.fixture(scope="session")
def built(site: Path) -> Site:
    return Site(site)


def test_every_link_and_every_loaded_file_is_a_part_of_the_site(built: Site) -> None:
    assert len(built.pages) > 50
    inner = {(page.url, link) for page in built.pages.values() for link in page.links if link.startswith(HOST)}
    assert sorted(each for each in inner if not built.has(each[1])) == []
    loaded = {(page.url, link) for page in built.pages.values() for link in page.loaded}
    assert sorted(each for each in loaded if not each[1].startswith(HOST) or not built.has(each[1])) == []


def test_every_page_is_in_the_navigation_and_in_llms_txt(built: Site) -> None:
    names = [name for part in navigation().values() for name in part]
    assert sorted(names) == sorted(pages())
    links = re.findall(r"^- \[.+?\]\((.+?)\): .+$", (built.directory / "llms.txt").read_text(), re.MULTILINE)
    assert links == names
    whole = (built.directory / "llms-full.txt").read_text(encoding="utf-8")
    for name in names:
        text = (built.directory / name).read_text(encoding="utf-8")
        assert text in whole
        assert "--8<--" not in text


def test_every_page_has_a_title_a_description_and_a_policy_for_its_scripts(built: Site) -> None:
    of_site = config()["site_description"]
    for name, text in pages().items():
        url = f"{HOST}/{name.removesuffix('.md')}/".replace("/index/", "/")
        head = built.pages[url].head
        assert title_of(text), name
        assert len(description(text)) > 20, name
        assert head["description"] != of_site, name
        assert f"{HOST}/{name}" in built.pages[url].loaded
        assert "'unsafe-inline'" not in head["Content-Security-Policy"].partition("style-src")[0]


def test_a_page_has_the_same_blocks_as_where_markdown_is_githubs() -> None:
    """Python-Markdown needs an empty line before a list, and four spaces for what belongs to an item."""
    github = MarkdownIt("commonmark", {"html": True}).enable("table")
    extensions = ["tables", "pymdownx.superfences", "pymdownx.highlight"]
    of_site = Markdown(extensions=extensions, extension_configs={"pymdownx.highlight": {"use_pygments": False}})
    for path in (*DOCS.rglob("*.md"), *SKILLS.rglob("*.md")):
        if "snippets" not in path.parts:
            text = FRONT_MATTER.sub("", path.read_text(encoding="utf-8"))
            one, other = (_blocks(html) for html in (github.render(text), of_site.reset().convert(text)))
            assert one == other, path.relative_to(ROOT)


def _blocks(html: str) -> dict[str, int]:
    return {tag: len(re.findall(rf"<{tag}[ >]", html)) for tag in BLOCKS}
