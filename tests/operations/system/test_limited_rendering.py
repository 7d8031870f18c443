"""Chat templates that take time or memory without end, and the texts of ordinary ones."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path

import pytest

from app.domain.datasets.chat_template import Message, TemplateRefused, UnusableTemplate
from app.domain.datasets.report import build_report
from app.domain.jobs.spec import DataParameters
from app.system.limited_process import LimitedProcess
from app.system.limited_rendering import limited_renderer, read_in_process
from app.system.tokenizer_files import load_renderer
from tests.datasets.families import FAMILIES, Family, make_tokenizer, write_family

pytestmark = pytest.mark.usefixtures("fork_server_with_tests")

ROOT = Path(__file__).resolve().parents[3]
READER = "app/system/limited_rendering.py"
CONVERSATION: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
LINE = json.dumps({"messages": CONVERSATION}).encode() + b"\n"
DOUBLINGS = "{%% set n = namespace(s=%s) %%}{%% for i in range(60) %%}{%% set n.s = n.s %s n.s %%}{%% endfor %%}"
LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
IN_TIME = {  # ended by their time
    "three nested loops": LOOPS,
    "nested macros": "{% macro f() %}{% for i in range(99999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call f() %}{% call f() %}{% endcall %}{% endcall %}",
    "one comparison": "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}"
    "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
}
IN_MEMORY = {  # ended by their memory
    "a format": '{{ "%999999999d"|format(1) }}',
    "doublings": DOUBLINGS % ("'ab'", "~"),
    "replaced": '{{ ("a" * 10**5)|replace("a", "b" * 10**5) }}',
    "joined": '{{ (["a" * 10**5] * 10**5)|join("b") }}',
    "a power": "{{ 10 ** (10 ** 10) }}",
    "long": '{{ "ab" * 10**7 }}',
}
LONG = ("nested macros", "a power")


def family_of(directory: Path, template: str) -> Path:
    return write_family(directory, Family("it", template, "<|im_end|>", "<|im_end|>"), make_tokenizer())


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in IN_TIME | IN_MEMORY]
)
def test_a_template_without_an_end_is_ended(tmp_path: Path, name: str) -> None:
    renderer = limited_renderer(family_of(tmp_path, (IN_TIME | IN_MEMORY)[name]))
    with pytest.raises(UnusableTemplate):
        renderer.text(CONVERSATION)


def test_the_recursion_of_a_macro_is_refused(tmp_path: Path) -> None:
    renderer = limited_renderer(family_of(tmp_path, "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}"))
    with pytest.raises(TemplateRefused, match="recursion"):
        renderer.text(CONVERSATION)


def test_after_an_end_the_next_text_is_rendered(tmp_path: Path) -> None:
    template = "{% if add_generation_prompt %}" + LOOPS + "{% endif %}{{ messages[0].content }}"
    renderer = limited_renderer(family_of(tmp_path, template))
    with pytest.raises(UnusableTemplate):
        renderer.text(CONVERSATION, prompt=True)
    assert renderer.text(CONVERSATION) == "a"


def test_the_reading_of_a_file_is_ended(tmp_path: Path) -> None:
    directory = family_of(tmp_path, IN_TIME["one comparison"])
    parameters = DataParameters()
    with pytest.raises(UnusableTemplate):
        read_in_process(
            directory, build_report, parameters, 1000, files=[io.BytesIO(LINE)], max_line_bytes=1000, check=lambda: None
        )
    with pytest.raises(UnusableTemplate):
        next(limited_renderer(directory).lines(1000, parameters, io.BytesIO(LINE)))


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_ordinary_templates_give_the_same_lines_as_in_this_process(tmp_path: Path, family: Family) -> None:
    here = load_renderer(write_family(tmp_path, family, make_tokenizer()))
    limited, parameters = limited_renderer(tmp_path, here.now), DataParameters()
    assert limited.text(CONVERSATION[:1], prompt=True) == here.text(CONVERSATION[:1], prompt=True)
    content = LINE + b"{}\n" + LINE
    assert [*limited.lines(1000, parameters, io.BytesIO(content))] == [
        *here.lines(1000, parameters, io.BytesIO(content))
    ]


def test_a_line_of_4_mib_has_the_memory_that_it_needs(tmp_path: Path) -> None:
    text = "a b\u00e9" * (1 << 18)
    line = json.dumps({"messages": [*CONVERSATION[:1], {"role": "assistant", "content": text}]}).encode() + b"\n"
    parameters = DataParameters()
    renderer = limited_renderer(write_family(tmp_path, FAMILIES[0], make_tokenizer()))
    ((number, documents),) = renderer.lines(4 << 20, parameters, io.BytesIO(line))  # type: ignore[misc]
    assert (number, len(documents)) == (1, 1)


def test_no_other_module_renders_in_its_own_process() -> None:
    """The workers and the API hold what no template may take away: connections, leases, a GPU."""
    importers = {
        path.relative_to(ROOT).as_posix()
        for top in ("app", "worker")
        for path in (ROOT / top).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and any(alias.name == "load_renderer" for alias in node.names))
        or (isinstance(node, ast.Attribute) and node.attr == "apply_chat_template")
    }
    assert importers == {READER}


def test_a_process_gets_no_secret_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.system.limited_process._server", None)  # the next process has a server of its own
    monkeypatch.setenv("TUNERY_SECRET_KEYS", "secret")
    with LimitedProcess() as process:
        assert process.call(_environment) is False


def _environment() -> bool:
    return b"TUNERY" in Path("/proc/self/environ").read_bytes()
