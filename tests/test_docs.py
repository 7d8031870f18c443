"""The pages agree with the code: they name every setting, route and package, and their examples are valid."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

from app.settings import REMOVED, Settings, WebSettings
from tools.docs.api_pages import slug
from tools.docs.reference import reference

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")
LINK_OR_ANCHOR = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)
FENCED = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?) *```", re.S)
SOURCE = re.compile(r"`((?:[a-z]\w*/)*\w+\.py)`")


def read(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def variable_of(name: str) -> str:
    return name.upper() if name in ("database_url", "redis_url") else f"TUNERY_{name.upper()}"


def web_variable_of(name: str) -> str:
    is_shared = name.startswith(("log_", "metrics_", "max_file_"))  # with other processes
    return f"TUNERY_{name.upper()}" if is_shared else f"TUNERY_WEB_{name.upper()}"


def test_every_setting_is_documented_with_its_environment_variable() -> None:
    page = read("reference/settings.md")
    variables = [*map(variable_of, Settings.model_fields), *map(web_variable_of, WebSettings.model_fields)]
    assert [name for name in variables if f"`{name}`" not in page] == []


def test_the_settings_page_has_the_defaults_of_the_code() -> None:
    written = dict(re.findall(r"^\| `(\w+)` \| `([^`]*)`", read("reference/settings.md"), re.M))
    fields = {variable_of(name): field.default for name, field in Settings.model_fields.items()}
    fields |= {web_variable_of(name): field.default for name, field in WebSettings.model_fields.items()}
    defaults = {name: str(value).removesuffix(".0").lower() for name, value in fields.items() if name in written}
    assert len(defaults) > 50
    assert defaults == {name: written[name] for name in defaults}


def test_the_settings_page_names_no_variable_that_is_not_read() -> None:
    read_variables = {variable_of(name) for name in Settings.model_fields} | {
        *map(web_variable_of, WebSettings.model_fields),
        "TUNERY_BASE_URL",
        "TUNERY_API_KEY",
        "TUNERY_PROFILE",
        "TUNERY_DEBUG",
        "TUNERY_UPLOAD_IDLE_SECONDS",  # an older name
        *REMOVED,
    }
    assert set(re.findall(r"`(TUNERY_[A-Z_0-9]+)`", read("reference/settings.md"))) <= read_variables


def test_every_route_is_documented(tmp_path: Path) -> None:
    from app.main import create_app

    settings = Settings(database_url="postgresql://nowhere/x", redis_url="redis://nowhere", data_dir=tmp_path)
    paths = create_app(settings).openapi()["paths"]
    text = read("reference/api.md")
    missing = [
        f"{method.upper()} {path}"
        for path, operations in paths.items()
        for method in operations
        if method != "head" and f"`{method.upper()} {path.replace(':path', '')}`" not in text
    ]
    assert missing == []


def test_every_relative_link_of_a_page_has_a_target_and_its_heading() -> None:
    generated = {(ROOT / "docs" / name): text for name, text in reference().items()}
    texts = {path: path.read_text(encoding="utf-8") for path in DOCS} | generated
    links = [
        (path, (path.parent / link[1]).resolve() if link[1] else path, link[2])
        for path, text in texts.items()
        for link in LINK_OR_ANCHOR.finditer(FENCED.sub("", text))
    ]
    assert [(path, target) for path, target, _ in links if not (target in generated or target.exists())] == []
    headings = {path: {slug(each) for each in HEADING.findall(FENCED.sub("", text))} for path, text in texts.items()}
    lost = [(path, target, anchor) for path, target, anchor in links if anchor and target.suffix == ".md"]
    assert [each for each in lost if each[2] not in headings[each[1]]] == []


def test_every_source_file_that_a_page_names_with_its_directory_exists() -> None:
    named = [(path, name) for path in DOCS for name in SOURCE.findall(path.read_text(encoding="utf-8"))]
    assert [(path, name) for path, name in named if "/" in name and not (ROOT / name).exists()] == []


def test_every_python_block_of_a_page_compiles() -> None:
    for path in DOCS:
        for number, block in enumerate(PYTHON.findall(path.read_text(encoding="utf-8"))):
            compile(textwrap.dedent(block), f"{path.relative_to(ROOT)}, block {number}", "exec")
