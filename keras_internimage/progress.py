"""A line of progress on standard error."""

import sys
import time

# A terminal's line is rewritten this often; a log file gets a new one this often. Seconds.
_TERMINAL, _FILE = 0.1, 10.0


class Progress:
    """`label: 1234 of 20000, 0:42 left`, rewritten in a terminal, now and then a line in a file.

    Args:
        label: what is being done.
        total: how many steps there are.
    """

    def __init__(self, label, total):
        self.label, self.total, self.done = label, total, 0
        self.started = time.monotonic()
        self.line = StatusLine(sys.stderr)
        self.terminal = sys.stderr.isatty()
        # What takes shorter than that needs no line.
        self.next = self.started + (_TERMINAL if self.terminal else _FILE)

    def advance(self, steps=1):
        self.done += steps
        now = time.monotonic()
        if now >= self.next and self.done < self.total:
            self.next = now + (_TERMINAL if self.terminal else _FILE)
            left = (now - self.started) / self.done * (self.total - self.done)
            self._show(f"{self.label}: {self.done} of {self.total}, {clock(left)} left")

    def _show(self, text):
        if self.terminal:
            self.line.show(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self):
        """Takes the line away."""
        self.line.clear()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class StatusLine:
    """A terminal's line that is written again and again.

    Args:
        stream: of the terminal.
    """

    def __init__(self, stream):
        self.stream, self.length = stream, 0

    def show(self, text):
        """Puts a text in place of the one before."""
        print("\r" + text.ljust(self.length), end="", file=self.stream, flush=True)
        self.length = len(text)

    def clear(self):
        """Takes the line away, if there is one."""
        if self.length:
            print("\r" + " " * self.length + "\r", end="", file=self.stream, flush=True)
            self.length = 0


def clock(seconds):
    """Seconds as `minutes:seconds` or `hours:minutes:seconds`."""
    seconds = int(seconds)
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
