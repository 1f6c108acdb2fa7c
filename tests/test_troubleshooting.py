"""docs/troubleshooting.md quotes messages as the code has them, enough of each to know it."""

import ast
import pathlib
import re

import pytest

pytestmark = pytest.mark.any_backend
ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
ROWS = re.findall(r"^\| `([^`]+)` \| (.*) \|$", PAGE, re.MULTILINE)
SHORTEST = 15
FOLDERS = ("keras_internimage", "custom_ops", "weights_convert")


def messages(tree):
    """Strings of the code but docstrings, a format string with {} for what is filled in."""
    nodes = list(ast.walk(tree))
    left_out = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            left_out.update(map(id, node.values))
    for node in nodes:
        if id(node) in left_out:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (getattr(part, "value", None) for part in node.values)
            yield "".join(part if isinstance(part, str) else "{}" for part in parts)


@pytest.fixture(scope="module")
def known():
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    return [text for path in paths for text in messages(ast.parse(path.read_text("utf-8")))]


def test_messages_are_quoted_as_they_are(known):
    assert len(ROWS) > 100
    for quoted, advice in ROWS:
        assert advice.strip() and len(quoted.replace("...", "")) >= SHORTEST, quoted
        text_of_code = quoted.replace("...", "{}")
        having = [text for text in known if text_of_code in text]
        assert having, f"no message has: {quoted}"
        # Several places may raise one message; two messages need more to be told apart.
        before = {text.partition(text_of_code)[0] for text in having}
        assert len(before) == 1, f"several messages have: {quoted}"


def test_no_message_is_there_twice():
    quotes = [quoted for quoted, _ in ROWS]
    assert not [a for a in quotes for b in quotes if a is not b and a in b]


def test_docstrings_are_no_messages():
    code = 'def f():\n    """A docstring of some length."""\n    raise ValueError(f"Not {1} so.")\n'
    assert list(messages(ast.parse(code))) == ["Not {} so."]
