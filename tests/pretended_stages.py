"""A stage of `benchmarks.gpu` whose items do what `PRETENDED_ITEMS` says, a list of words."""

import functools
import os
import signal
import time

from benchmarks.gpu.worker import Item


def items(context):
    deeds = {
        "good": lambda: context.row(check="good", outcome="passed"),
        "slow": lambda: time.sleep(0.3),
        "hang": lambda: time.sleep(1000),
        "abort": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "exit": lambda: os._exit(7),
        "lose the device": lambda: os._exit(3),
        "leave a child": lambda: _leave_a_child(context),
        "sides": lambda: _sides(context),
    }
    words = os.environ["PRETENDED_ITEMS"].split(",")
    if words[0] == "no items":
        raise RuntimeError("This stage has none.")
    return [Item(word, functools.partial(deeds[word]), {"side": "pretended"}) for word in words]


def _sides(context):
    for side in ("good", "bad", "better"):
        if side not in context.without:
            context.trying(side)
            if side == "bad":
                os._exit(7)
            context.row(side=side, check="sides", outcome="measured")


def _leave_a_child(context):
    child = os.fork()
    if not child:
        time.sleep(1000)
    context.row(check="child", outcome="passed", note=str(child))
