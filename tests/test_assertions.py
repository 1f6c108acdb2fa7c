"""No test has an assertion that cannot fail."""

import ast
import pathlib

import pytest

pytestmark = pytest.mark.any_backend

TESTS = pathlib.Path(__file__).parent
# Methods that say something when called, and are true when they are not.
PREDICATES = {"all", "any", "exists", "is_dir", "is_file", "startswith", "endswith", "issubset"}
# What these find is to be asserted; as a statement of its own it is lost.
COMPARING = {"allclose", "array_equal", "isclose", "isinstance", "all", "any"}


def always_true(node):
    """Whether an expression is true whatever is computed, as far as its form tells."""
    if isinstance(node, ast.Constant):
        return bool(node.value)
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(not isinstance(element, ast.Starred) for element in node.elts)
    if isinstance(node, ast.Dict):
        return any(key is not None for key in node.keys)
    if isinstance(node, ast.BoolOp):
        true = [always_true(value) for value in node.values]
        return any(true) if isinstance(node.op, ast.Or) else all(true)
    if isinstance(node, ast.IfExp):  # `a == b if c else d`, where `a == (b if c else d)` is meant
        checks = (ast.Compare, ast.Call, ast.UnaryOp, ast.BoolOp)
        return any(
            always_true(part) or not isinstance(part, checks) for part in (node.body, node.orelse)
        )
    if isinstance(node, ast.Attribute):
        return node.attr in PREDICATES
    return isinstance(node, ast.GeneratorExp | ast.Lambda | ast.JoinedStr)


def called(node):
    """The name of the function that an expression calls, None if it does not."""
    if not isinstance(node, ast.Call):
        return None
    return getattr(node.func, "attr", getattr(node.func, "id", None))


def raises(node):
    """Whether a statement is `with pytest.raises(...)` or the like."""
    return isinstance(node, ast.With) and any(
        called(item.context_expr) in ("raises", "warns") for item in node.items
    )


def does_nothing(statement):
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant | ast.Name)
    )


def found(source):
    """Pairs of a line's number and what is wrong there."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            parts = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
            if any(map(always_true, [node.test, *parts])):
                yield node.lineno, "it is true whatever is computed, or in one of two cases"
            message = node.msg
            if isinstance(message, ast.Compare) or (
                isinstance(message, ast.Constant) and not isinstance(message.value, str)
            ):
                yield node.lineno, "what follows the comma is a message, and compares nothing"
        elif raises(node) and all(map(does_nothing, node.body)):
            yield node.lineno, "nothing in it can raise"
        elif isinstance(node, ast.Expr) and (
            isinstance(node.value, ast.Compare) or called(node.value) in COMPARING
        ):
            yield node.lineno, "what it finds is lost"
        elif isinstance(node, ast.For) and isinstance(node.iter, ast.Tuple | ast.List):
            if not node.iter.elts:
                yield node.lineno, "it runs over nothing"


@pytest.mark.parametrize(
    "line",
    [
        "assert a == {1} if b else {2}",
        "assert a and (b if c else 'text')",
        "assert (a == b, 'message')",
        "assert a == b if c else d",
        "assert a == b or 'message'",
        "assert 'text'",
        "assert (x > 0 for x in a)",
        "assert path.exists",
        "assert len(a), 3",
        "assert a, b == c",
        "a == b",
        "np.allclose(a, b)",
        "with pytest.raises(ValueError):\n    pass",
        "for x in ():\n    assert x",
    ],
)
def test_what_cannot_fail_is_found(line):
    assert len(list(found(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "assert a == ({1} if b else {2})",
        "assert a and b",
        "assert not (a or b), 'message'",
        "assert all(x > 0 for x in a), f'{a}'",
        "assert path.exists()",
        "assert [*a]",
        "assert a == b if c else 1 <= a",
        "with pytest.raises(ValueError):\n    f()",
        "with pytest.raises(ValueError):\n    a == b",
    ],
)
def test_what_can_fail_is_not(line):
    assert not [wrong for wrong in found(line) if wrong[1] != "what it finds is lost"]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_every_assertion_can_fail(path):
    wrong = [f"{path}:{number}: {why}" for number, why in found(path.read_text("utf-8"))]
    assert not wrong, "\n".join(wrong)
