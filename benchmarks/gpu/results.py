"""The results on disk: `results.json`, `results.md` and `log.txt` in a folder of the run's own.

Each file is written under another name and renamed, after every stage: what a killed run has found
is there. A rehearsal's files, figures and rows have other names, so that none can be taken for a
GPU's, not even one that is copied alone.
"""

import datetime
import json
import os
import pathlib
import re

from benchmarks.gpu import goals, operator_times

BANNER = "REHEARSAL ON A PROCESSOR: nothing here was measured on a GPU, and no time means anything."
MARK = "rehearsal_"
FIGURES = (
    "milliseconds",
    "gigabytes_per_second",
    "official_over_this",
    "this_over_floor",
    "images_per_second",
    "peak_megabytes",
)
TROUBLE = ("failed", "crashed", "hung", "cut off")


def new_folder(output, device, rehearsal, now=None):
    """A new folder in `output`, named by the time and the device; never one that is there."""
    now = now or datetime.datetime.now()
    name = f"{now:%Y-%m-%d-%H%M%S}-{re.sub('[^A-Za-z0-9]+', '-', device).strip('-') or 'unknown'}"
    name = f"rehearsal-{name}" if rehearsal else name
    for number in range(1, 1000):
        folder = pathlib.Path(output, name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"A new folder must be made in {output}. Received: too many of {name}")


def write(folder, machine, rows, backends, rehearsal):
    """Writes what is known so far."""
    content = {
        "rehearsal": rehearsal,
        "machine": machine,
        "goals": [] if rehearsal else goals.judge(rows, backends),
        "order": {} if rehearsal else {b: goals.order(rows, b) for b in backends},
        "rows": [marked(row) for row in rows] if rehearsal else rows,
    }
    prefix = "rehearsal" if rehearsal else "results"
    _atomic(folder / f"{prefix}.json", json.dumps(content, indent=1))
    _atomic(folder / f"{prefix}.md", markdown(machine, rows, backends, rehearsal))


def _atomic(path, text):
    temporary = path.with_name(f".{path.name}.unfinished")
    temporary.write_text(text)
    os.replace(temporary, path)


def marked(row):
    """The row of a rehearsal: its figures have other names."""
    return {(MARK + key if key in FIGURES else key): value for key, value in row.items()}


# ---- Markdown ----


def markdown(machine, rows, backends, rehearsal):
    """All tables."""
    tables = [_Table(rehearsal)]
    add = tables[0]
    add.line(f"# DCNv3 on {_device(machine)}" if not rehearsal else f"# {BANNER}")
    add.line(_circumstances(machine))
    _goals(add, rows, backends)
    _troubles(add, rows)
    _correctness(add, rows)
    _operator(add, rows)
    _model(add, rows)
    _stages(add, rows)
    return "\n".join(add.lines) + "\n"


class _Table:
    """Lines of Markdown; in a rehearsal every title and every row says so."""

    def __init__(self, rehearsal):
        self.rehearsal, self.lines = rehearsal, []

    def line(self, text):
        self.lines += [text, ""]

    def table(self, title, head, rows):
        if not rows:
            return
        self.line(f"## {'Rehearsal: ' if self.rehearsal else ''}{title}")
        head = ["", *head] if self.rehearsal else head
        self.lines += [_row(head), _row(["---"] * len(head))]
        self.lines += [_row(["rehearsal", *r] if self.rehearsal else r) for r in rows]
        self.lines.append("")


def _row(cells):
    return "| " + " | ".join(_cell(c) for c in cells) + " |"


def _cell(value):
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if value < 100 else f"{value:.0f}"
    return " ".join(str(value).replace("|", "\\|").split())


def _device(machine):
    gpus = machine.get("gpus") or []
    return ", ".join(gpu.get("name", "?") for gpu in gpus) or "an unknown device"


def _circumstances(machine):
    parts = [f"{name} {version}" for name, version in machine.get("versions", {}).items()]
    parts += [f"driver {gpu.get('driver')}" for gpu in machine.get("gpus") or []]
    parts += [f"Python {machine.get('python')}", f"commit {machine.get('commit')}"]
    return ", ".join(parts) + "."


def _goals(add, rows, backends):
    if add.rehearsal:
        add.line("Goals are not judged in a rehearsal.")
        return
    judged = [
        [g["goal"], g["backend"], g["outcome"], g["note"]] for g in goals.judge(rows, backends)
    ]
    add.table("Goals", ["goal", "backend", "", ""], judged)
    for backend in backends:
        found, now = goals.order(rows, backend), goals.implementations(rows, backend)
        if found:
            table = ", ".join(f"{name} ({slower:.2f})" for name, slower in found)
            add.line(
                f"Order that the operator's times suggest on {backend} (times slower than the "
                f"first): {table}. The order now: {', '.join(now)}."
            )


def _troubles(add, rows):
    found = [r for r in rows if r.get("outcome") in (*TROUBLE, "not run")]
    table = [
        [r["stage"], r.get("backend"), r.get("implementation") or r.get("side"), r.get("check"),
         r["outcome"], (r.get("note") or "")[:300]]
        for r in found
    ]  # fmt: skip
    add.table("What failed or did not run", ["stage", "backend", "what", "", "", "why"], table)


def _correctness(add, rows):
    found = [r for r in rows if r["stage"] in ("correctness", "determinism") and "check" in r]
    found += [r for r in rows if r["stage"] == "model" and str(r.get("check")).startswith("logits")]
    table = [
        [r.get("backend"), r.get("implementation"), r["check"], r["outcome"], r.get("note")]
        for r in found
        if r["outcome"] != "not run"
    ]
    head = ["backend", "implementation", "check", "", ""]
    add.table("Against the oracle in float64", head, table)


def _operator(add, rows):
    for dtype in ("float16", "float32"):
        for kind in ("forward", "backward"):
            table = [
                [r["shape"], r["groups"], r["source"], r["backend"], r["side"], r["milliseconds"],
                 r["gigabytes_per_second"], r.get("official_over_this"), r.get("this_over_floor")]
                for r in goals._measured(rows, "operator", **{"dtype": dtype, "pass": kind})
            ]  # fmt: skip
            head = ["N x H x W x C", "G", "of", "backend", "", "ms", "GB/s"]
            head += [f"times faster than the {operator_times.OFFICIAL}", "times the copy"]
            add.table(f"Operator, {kind}, {dtype}", head, table)


def _model(add, rows):
    table = [
        [r["check"], r["batch"], r["backend"], r["side"], r["milliseconds"],
         r["images_per_second"], _peak(r)]
        for r in goals._measured(rows, "model")
    ]  # fmt: skip
    head = ["", "batch", "backend", "", "ms", "images/s", "peak of a run, MiB"]
    add.table("InternImage-T at 224 pixels", head, table)


def _peak(row):
    if "peak_megabytes" not in row:
        return None
    return f"{'up to ' if row['peak_is_a_bound'] else ''}{row['peak_megabytes']:.0f}"


def _stages(add, rows):
    table = [
        [r["stage"], r.get("backend"), r["outcome"], r["seconds"], r.get("limit"), r.get("note")]
        for r in rows
        if "seconds" in r
    ]
    add.table("Stages", ["stage", "backend", "", "s", "limit, s", ""], table)
