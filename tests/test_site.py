"""The documentation site: built strictly, whole, with nothing asked of other servers."""

import html
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

# Addresses in the theme's scripts, and why none of them is asked for. Those in comments and in
# messages are asked for by nobody.
ADDRESSES = {
    "https://clipboardjs.com/": "a comment",
    "http://lunrjs.com": "a comment",
    "http://tartarus.org/~martin/PorterStemmer/js.txt": "a comment",
    "https://bit.ly/2s3ChXG": "a message in the console",
    "https://unpkg.com/resize-observer-polyfill": "loaded by browsers of before 2020 alone",
    "https://unpkg.com/mermaid@11/dist/mermaid.min.js": "loaded for elements of class mermaid",
    "https://api.github.com/repos/${e}/${t}": "asked for where mkdocs.yml has a repo_url",
    "https://api.github.com/users/${e}": "asked for where mkdocs.yml has a repo_url",
    "https://${e}/api/v4/projects/${encodeURIComponent(t": "asked for where it has a repo_url",
}
# The theme's words of other languages; the search loads none for English.
LANGUAGES = pathlib.PurePath("assets/javascripts/lunr")
# With a scheme, or a quoted one without: "//host.example".
ADDRESS = re.compile(r"(?:https?|wss?)://[^\s\"'`)<>\\]+|(?<=[\"'`])//[\w-]+\.[^\s\"'`)<>\\]+")
IN_STYLE = re.compile(r"url\(\s*[\"']?\s*([^\"')]+)|@import\s*[\"']([^\"']+)")


class Page(html.parser.HTMLParser):
    """A page's anchors, links, classes, scripts, and what a browser fetches for it."""

    FETCHED = ("src", "srcset", "imagesrcset", "poster", "background")
    FETCHED_OF = {
        "object": ("data", "codebase"),
        "image": ("href", "xlink:href"),
        "use": ("href", "xlink:href"),
    }
    LISTS = ("srcset", "imagesrcset")
    # Of a <link>: what is an address of a page, which is not fetched.
    NOT_FETCHED = {"canonical", "next", "prev", "alternate"}

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.fetched = set(), [], []
        self.classes, self.components, self.headings = set(), set(), []
        self.scripts, self.refreshes = [], []
        self._inside = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = {key: value or "" for key, value in attributes}
        self._inside = tag
        self.anchors.update(values[key] for key in ("id", "name") if values.get(key))
        self.classes.update(values.get("class", "").split())
        self.components.add(values.get("data-md-component"))
        if tag == "h1":
            self.headings.append(values.get("id"))
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "meta" and values.get("http-equiv", "").lower() == "refresh":
            self.refreshes.append(values)
        names = (*self.FETCHED, *self.FETCHED_OF.get(tag, ()))
        if tag == "link" and not set(values.get("rel", "").split()) & self.NOT_FETCHED:
            names += ("href",)
        for name in names:
            if values.get(name):
                self.fetched += _addresses(values[name], name in self.LISTS)
        self.fetched += in_style(values.get("style", ""))
        self.fetched += Page(values["srcdoc"]).fetched if values.get("srcdoc") else []

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "style":
            self.fetched += in_style(data)
        elif self._inside == "script":
            self.scripts.append(data)


def _addresses(value, several):
    return [part.split()[0] for part in value.split(",") if part.strip()] if several else [value]


def in_style(text):
    """What a style sheet fetches, but for what it holds itself."""
    found = [first or second for first, second in IN_STYLE.findall(text)]
    return [place.strip() for place in found if not place.strip().startswith("data:")]


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
    return {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html")}


def test_every_link_leads_somewhere(site, pages):
    assert len(pages) > 40
    for path, page in pages.items():
        for place in [*page.links, *page.fetched]:
            split = urllib.parse.urlsplit(place)
            if split.scheme or split.netloc:
                continue
            # The server shows 404.html under any address, so its own are from the top; a page's
            # are not, for the site may lie in a folder of the server.
            assert place[0] == "#" or place.startswith("/") == (path.name == "404.html"), path
            start = site if split.path.startswith("/") else path.parent
            target = (start / urllib.parse.unquote(split.path).lstrip("/")).resolve()
            target = path if not split.path else target
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path} links to {place}"
            if split.fragment and target.suffix == ".html" and not split.fragment.startswith("__"):
                anchors = pages[target].anchors
                assert urllib.parse.unquote(split.fragment) in anchors, f"{path}: {place}"


def test_each_page_has_one_title_and_whole_tables(site, pages):
    for path, page in pages.items():
        assert len(page.headings) == 1, path
        text = re.sub(r"<(code|pre)\b.*?</\1>", "", path.read_text("utf-8"), flags=re.DOTALL)
        assert not re.search(r"\| *:?---|^#{1,4} |```", text, re.MULTILINE), path


def test_pages_and_styles_fetch_nothing_from_other_servers(site, pages):
    for path, page in pages.items():
        assert not page.refreshes, path
        for place in page.fetched:
            split = urllib.parse.urlsplit(place)
            assert not split.scheme and not split.netloc, f"{path} fetches {place}"
        assert "search.js" in [place.rpartition("/")[2] for place in page.fetched], path
    sheets = list(site.rglob("*.css"))
    assert sheets and any(path.name == "site.css" for path in sheets)
    for path in sheets:
        for place in in_style(path.read_text("utf-8")):
            split = urllib.parse.urlsplit(place)
            assert not split.scheme and not split.netloc, f"{path} fetches {place}"


def test_scripts_name_no_address_that_they_would_fetch(site, pages):
    """What can be read in them; an address that a script puts together of pieces is not seen."""
    config = json.loads((site / "search" / "search_index.json").read_text("utf-8"))["config"]
    assert config["lang"] == ["en"]
    texts = {path: path.read_text("utf-8") for path in site.rglob("*.js")}
    texts = {p: t for p, t in texts.items() if LANGUAGES not in p.relative_to(site).parents}
    assert any(path.name.startswith("bundle.") for path in texts)
    assert any(path.name.startswith("search.") for path in texts)
    for path, page in pages.items():
        texts[path] = "\n".join(page.scripts)
        assert page.scripts and "mermaid" not in page.classes and "source" not in page.components
    found = {address for text in texts.values() for address in ADDRESS.findall(text)}
    assert found == set(ADDRESSES)


@pytest.mark.parametrize(
    "text",
    [
        '<img srcset="a.png 1x, https://other.example/b.png 2x">',
        '<link rel="preload" as="script" href="https://other.example/a.js">',
        '<link rel="preload" as="image" imagesrcset="https://other.example/a.png 2x">',
        '<object data="https://other.example/a.svg"></object>',
        '<embed src="https://other.example/a.svg">',
        "<iframe srcdoc=\"<img src='https://other.example/a.png'>\"></iframe>",
        '<audio src="//other.example/a.ogg"></audio>',
        '<video poster="https://other.example/a.png"></video>',
        "<p style=\"background: url('https://other.example/a.png')\">",
        "<style>@import 'https://other.example/a.css';</style>",
        "<style>p { background: url(//other.example/a.png) }</style>",
    ],
)
def test_what_a_page_fetches_is_found(text):
    places = [urllib.parse.urlsplit(place) for place in Page(text).fetched]
    assert [place.netloc for place in places if place.netloc] == ["other.example"]


@pytest.mark.parametrize("script", ['load("//other.example/a.js")', "fetch(`https://o.example/`)"])
def test_what_a_script_names_is_found(script):
    assert len(ADDRESS.findall("".join(Page(f"<script>{script}</script>").scripts))) == 1


@pytest.mark.parametrize(
    "word, page",
    [
        ("offset_scale", "inside.html"),
        ("internimage-predict", "classify.html"),
        ("UperNetT", "segmentation.html"),
        ("MaskRCNNT", "detection.html"),
        ("internimage-train", "training.html"),
        ("--early-stopping", "commands/internimage-train.html"),
        ("internimage-segment", "commands/internimage-segment.html"),
        ("hf://", "loading.html"),
        ("model card", "cards/internimage.html"),
        ("nvcc", "kernels.html"),
        ("bfloat16", "speed.html"),
        ("pip install", "install.html"),
        ("DeformConv", "export.html"),
        ("could not be downloaded", "troubleshooting.html"),
        ("MaskHead", "api/layers_detection.html"),
        ("internimage_t_1k_224", "models.html"),
    ],
)
def test_search_finds(site, word, page):
    index = json.loads((site / "search" / "search_index.json").read_text("utf-8"))
    texts = [
        f"{entry['title']} {entry['text']}"
        for entry in index["docs"]
        if entry["location"].partition("#")[0] == page
    ]
    assert word.lower() in html.unescape(" ".join(texts)).lower()


def place_of(package, name):
    """The anchor of a public name: `package.name`, or where it is defined if a module is so."""
    place = f"{package}.{name}"
    value = getattr(importlib.import_module(package), name)
    if place in sys.modules:
        return f"{value.__module__}.{name}"
    return place


def test_the_reference_has_every_public_name(site, pages):
    top = "keras_internimage"
    for name in keras_internimage.__all__:
        value = getattr(keras_internimage, name)
        if isinstance(value, types.ModuleType):
            continue
        # `load` and `portable_ops` stand on the page of the top package.
        package = keras_internimage._NAMES[name]
        own = package == "loading" or package not in api.packages()
        page = "api/load.html" if own else api.page_of(package).replace(".md", ".html")
        assert place_of(f"{top}.{package}", name) in pages[site / page].anchors, name
    assert {"load", "MaskRCNNT", "portable_ops"} <= set(keras_internimage.__all__)
    constants = []
    for package in api.packages():
        module = importlib.import_module(f"{top}.{package}")
        anchors = pages[site / api.page_of(package).replace(".md", ".html")].anchors
        for name in getattr(module, "__all__", api.public_names(package)):
            value = getattr(module, name)
            if not isinstance(value, types.ModuleType):
                assert place_of(module.__name__, name) in anchors, f"{package}: {name}"
                constants += [name] if not callable(value) else []
    assert {"VARIANTS", "RECIPES"} <= set(constants)


def test_no_public_package_is_without_a_page():
    """Packages found by importing them, which api.packages() reads from their sources."""
    top = keras_internimage.__path__[0]
    for path in pathlib.Path(top).rglob("__init__.py"):
        name = ".".join(path.relative_to(top).parts[:-1])
        module = importlib.import_module(f"keras_internimage.{name}") if name else None
        names = getattr(module, "__all__", None)
        if not names or name in api.packages():
            continue
        outer = importlib.import_module(module.__name__.rpartition(".")[0])
        assert set(names) <= set(outer.__all__), name
    assert {"models", "layers.detection", "preprocessing"} <= set(api.packages())


def options_in(text):
    """The options that a text names, each whole."""
    return set(re.findall(r"(?<![\w-])--?[A-Za-z][\w-]*", text))


def test_options_are_compared_whole():
    assert options_in("[--output FILE] -h, --no-labels=x, --json. pre--out") == {
        *("--output", "-h", "--no-labels", "--json")
    }


def test_each_command_has_a_page_with_all_its_options(site):
    assert len(commands.entry_points()) == 7
    for name, module in commands.entry_points().items():
        shown = (site / "commands" / f"{name}.html").read_text("utf-8")
        blocks = [
            html.unescape(re.sub(r"<[^>]*>", "", block))
            for block in re.findall(r"<pre>(.*?)</pre>", shown, re.DOTALL)
        ]
        made = importlib.import_module(module).parser()
        groups = [a for a in made._actions if isinstance(getattr(a, "choices", None), dict)]
        parsers = [made, *(p for action in groups for p in action.choices.values())]
        assert len(blocks) == len(parsers), name
        for parser in parsers:
            (block,) = [b for b in blocks if b.startswith(f"usage: {parser.prog} [-h]")]
            options = {o for action in parser._actions for o in action.option_strings}
            assert "--help" in options and ("--version" in options) == (parser is made)
            # The usage, an option's own line, or both.
            assert options - options_in(block) == set(), parser.prog


@pytest.mark.parametrize("name", tutorials.TUTORIALS)
def test_tutorials_are_of_the_examples_as_they_are(name):
    assert (ROOT / "examples" / f"{name}.py").is_file()
    if tutorials.TUTORIALS[name].arguments is None:
        return
    kept = (tutorials.FOLDER / name / "source.sha256").read_text("utf-8").strip()
    assert kept == tutorials.digest(name), f"python website/tutorials.py {name}"


def test_every_example_is_a_tutorial():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(tutorials.TUTORIALS)
    not_run = {name for name, row in tutorials.TUTORIALS.items() if row.arguments is None}
    assert not_run == {"classify"}, "which needs the official weights"
