"""What ends a training before its time. Known without Keras: the command catches it."""


class Stopped(Exception):
    """The user, or the system, asked the training to stop.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


class Diverged(RuntimeError):
    """The loss is no number any more."""
