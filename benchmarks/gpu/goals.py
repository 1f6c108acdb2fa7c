"""What the numbers say: the goals met or missed, and the order of implementations they suggest."""

import math

from benchmarks.gpu.operator_times import FLOOR, GRID_SAMPLE, OFFICIAL

# At least so many times faster than the official kernels' algorithm; at most so many times the
# time of copying the bytes. In float16, at every shape of the table.
FORWARD, FLOORS, BACKWARD = 3.0, 2.0, 3.0
INFERENCE = 1.8
_OTHERS = (OFFICIAL, FLOOR, GRID_SAMPLE)


def _measured(rows, stage, **wanted):
    return [
        row
        for row in rows
        if row["stage"] == stage
        and row.get("outcome") == "measured"
        and all(row.get(key) == value for key, value in wanted.items())
    ]


def chosen(rows, backend):
    """The implementation that runs by itself: the first of the operator's rows."""
    names = implementations(rows, backend)
    return names[0] if names else None


def implementations(rows, backend):
    """Those that were measured, in the order of preference as it is."""
    found = [r["side"] for r in _measured(rows, "operator", backend=backend)]
    return [name for name in dict.fromkeys(found) if name not in _OTHERS]


def judge(rows, backends):
    """Rows of goals: dicts with `goal`, `backend`, `outcome` and `note`."""
    result = []
    for backend in backends:
        for title, kind, figure, worst, met in (
            (f"forward >= {FORWARD:g}x official, float16", "forward", "official_over_this", min,
             lambda x: x >= FORWARD),
            (f"forward <= {FLOORS:g}x the copy, float16", "forward", "this_over_floor", max,
             lambda x: x <= FLOORS),
            (f"backward >= {BACKWARD:g}x official, float16", "backward", "official_over_this", min,
             lambda x: x >= BACKWARD),
        ):  # fmt: skip
            name = chosen(rows, backend)
            wanted = {"backend": backend, "dtype": "float16", "pass": kind, "side": name}
            found = [r for r in _measured(rows, "operator", **wanted) if figure in r]
            outcome, note = "not measured", "no figures; see what did not run"
            if found:
                hardest = worst(found, key=lambda r: r[figure])
                outcome = "met" if met(hardest[figure]) else "missed"
                good = sum(met(r[figure]) for r in found)
                note = f"{name}: {good} of {len(found)} shapes; worst {hardest[figure]:.2f} at "
                note += hardest["shape"]
            result.append({"goal": title, "backend": backend, "outcome": outcome, "note": note})
    result.append(_inference(rows))
    return result


def _inference(rows):
    goal = {"goal": f"InternImage-T inference >= {INFERENCE:g}x official", "backend": "torch"}
    found = {}
    for row in _measured(rows, "model", **{"backend": "torch", "pass": "inference"}):
        found.setdefault(row["dtype"], {})[row["side"]] = row["images_per_second"]
    name, notes, ratios = chosen(rows, "torch"), [], {}
    for dtype, sides in found.items():
        official = sides.get("official InternImage-T")
        ours = sides.get(f"InternImage-T, {name}")
        if official and ours:
            ratios[dtype] = ours / official
            notes.append(f"{dtype} {ratios[dtype]:.2f}")
    if "float16" not in ratios:
        return {**goal, "outcome": "not measured", "note": "; ".join(notes) or "no figures"}
    outcome = "met" if ratios["float16"] >= INFERENCE else "missed"
    return {**goal, "outcome": outcome, "note": f"{name}: {', '.join(notes)}"}


def order(rows, backend):
    """The implementations by their speed: pairs of a name and how many times slower than the first.

    The geometric mean over all rows of the operator's table that every one of them has.
    """
    times = {}
    for row in _measured(rows, "operator", backend=backend):
        if row["side"] not in _OTHERS:
            times.setdefault(row["check"], {})[row["side"]] = row["milliseconds"]
    names = implementations(rows, backend)
    common = [sides for sides in times.values() if all(name in sides for name in names)]
    if not common:
        return []
    means = {
        name: math.exp(sum(math.log(sides[name]) for sides in common) / len(common))
        for name in names
    }
    best = min(means.values())
    return sorted(((name, mean / best) for name, mean in means.items()), key=lambda pair: pair[1])
