"""A page for each command: what it prints with `--help`."""

import configparser
import functools
import os
import re
import subprocess
import sys

from website.places import ROOT


@functools.cache
def entry_points() -> dict[str, str]:
    """The commands of setup.cfg: name to module."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", "utf-8")
    lines = parser["options.entry_points"]["console_scripts"].split("\n")
    pairs = (line.split("=") for line in lines if line.strip())
    return {name.strip(): target.strip().partition(":")[0] for name, target in pairs}


def navigation():
    return [{name: f"commands/{name}.md"} for name in entry_points()]


def pages():
    return {f"commands/{name}.md": _page(name, module) for name, module in entry_points().items()}


def _page(name, module):
    text = _help(name, module)
    parts = [f"# {name}\n\n```text\n{text}```\n"]
    # A command of commands says below its usage which there are.
    found = re.search(r"^  COMMAND\n((?:    .*\n)+)", text, re.MULTILINE)
    for line in found[1].splitlines() if found else ():
        if match := re.match(r"    (\w+) ", line):
            shown = _help(name, module, match[1])
            parts.append(f"## {name} {match[1]}\n\n```text\n{shown}```\n")
    return "\n".join(parts)


@functools.cache
def _help(name, module, *arguments):
    # A page of the site shows that many characters without scrolling.
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--help"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
        cwd=ROOT,
    )
    return result.stdout.rstrip() + "\n"
