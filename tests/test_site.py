"""The documentation site: built strictly, whole, with nothing asked of other servers."""

import ast
import html.parser
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import types
import urllib.parse

import pytest

import keras_internimage

pytest.importorskip("mkdocs")
pytestmark = pytest.mark.any_backend
ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from website import api, commands, tutorials  # noqa: E402


class Page(html.parser.HTMLParser):
    """A page's anchors, links, and what a browser fetches for it."""

    FETCHED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src"}

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.fetched = set(), [], []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors.update(values[key] for key in ("id", "name") if values.get(key))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        of_link = tag == "link" and values.get("rel") not in ("canonical", "next", "prev")
        key = "href" if of_link else self.FETCHED.get(tag)
        if values.get(key):
            self.fetched.append(values[key])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def test_links_lead_somewhere_and_nothing_leaves_the_site(site, pages):
    assert len(pages) > 40
    for path, page in pages.items():
        for place in page.fetched:
            split = urllib.parse.urlsplit(place)
            assert not split.scheme and not split.netloc, f"{path} fetches {place}"
        for place in [*page.links, *page.fetched]:
            split = urllib.parse.urlsplit(place)
            if split.scheme or split.netloc or path.name == "404.html":
                continue
            target = (path.parent / urllib.parse.unquote(split.path)).resolve()
            target = path if not split.path else target
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path} links to {place}"
            if split.fragment and target.suffix == ".html" and not split.fragment.startswith("__"):
                anchors = pages[target].anchors
                assert urllib.parse.unquote(split.fragment) in anchors, f"{path}: {place}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?https?:|@import", path.read_text("utf-8")), path


def test_search_finds(site):
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    text = " ".join(f"{entry['title']} {entry['text']}" for entry in index["docs"])
    for word in ("offset_scale", "UperNetT", "internimage-segment", "hf://", "model card"):
        assert word.lower() in text.lower(), word


def test_the_reference_has_every_public_name(pages):
    anchors = set().union(*(page.anchors for page in pages.values()))
    ends = {anchor.rpartition(".")[2] for anchor in anchors}
    objects = [
        name
        for name in keras_internimage.__all__
        if not isinstance(getattr(keras_internimage, name), types.ModuleType)
    ]
    assert "load" in objects and "MaskRCNNT" in objects
    assert set(objects) <= ends
    for package in api.PACKAGES:
        module = importlib.import_module(f"keras_internimage.{package}")
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if callable(value):
                places = {f"{module.__name__}.{name}", f"{value.__module__}.{name}"}
                assert places & anchors, name


def test_each_command_has_a_page_with_all_its_options(site):
    assert len(commands.entry_points()) == 7
    for name, module in commands.entry_points().items():
        shown = (site / "commands" / f"{name}.html").read_text("utf-8")
        made = importlib.import_module(module).parser()
        groups = [a for a in made._actions if isinstance(getattr(a, "choices", None), dict)]
        parsers = [made, *(p for action in groups for p in action.choices.values())]
        options = {o for p in parsers for a in p._actions for o in a.option_strings}
        assert {"--help", "--version"} <= options
        missing = [option for option in options if option not in shown]
        assert not missing, name


def texts():
    """Every string of the code, a format string with {} for what is filled in."""
    for folder in ("keras_internimage", "custom_ops", "weights_convert"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    parts = (getattr(part, "value", "{}") for part in node.values)
                    yield "".join(part if isinstance(part, str) else "{}" for part in parts)


def test_messages_are_quoted_as_they_are():
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    known = list(texts())
    assert len(quoted) > 12
    for message in quoted:
        assert any(message in text for text in known), message


@pytest.mark.parametrize("name", tutorials.TUTORIALS)
def test_tutorials_are_of_the_examples_as_they_are(name):
    assert (ROOT / "examples" / f"{name}.py").is_file()
    if tutorials.TUTORIALS[name].arguments is None:
        return
    kept = (tutorials.FOLDER / name / "source.sha256").read_text("utf-8").strip()
    assert kept == tutorials.digest(name), f"python website/tutorials.py {name}"


def test_every_example_is_a_tutorial():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(tutorials.TUTORIALS)
