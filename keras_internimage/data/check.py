"""Whether a file is an image that can be trained on, and how names and reasons are shown."""

import concurrent.futures
import os
import warnings

from keras_internimage.preprocessing import read_image
from keras_internimage.progress import Progress

# So many problems are listed; the others are counted.
SHOWN = 10


def examined(title, examine, items, threads=None):
    """`[examine(item) for item in items]`, by threads, with a progress bar of that title.

    `threads` is their number, None for one for each processor.
    """
    from PIL import Image

    with (
        warnings.catch_warnings(),
        concurrent.futures.ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool,
        Progress(title, len(items)) as progress,
    ):
        # Sizes are judged by name; what Pillow warns of else is not the user's to change.
        warnings.simplefilter("ignore")
        Image.init()
        results = []
        for result in pool.map(examine, items):
            progress.advance()
            results.append(result)
    return results


def unreadable(files, folder, threads):
    """`(path, reason)` of the files that are no whole images."""
    bad = []
    reasons = examined("Reading every image once", why_bad, files, threads)
    for file, reason in zip(files, reasons, strict=True):
        if reason is None and shown(file, folder) != str(file.relative_to(folder)):
            reason = "the name of its folder is no UTF-8"
        if reason is not None:
            bad.append((file, reason))
    return bad


def why_bad(path, at_least=lambda size: (1, 1)):
    """Why a file is no image to train on, or None if it is one. Reads all of it.

    At the smallest scale that the format has, unless `at_least` of `read_image` says otherwise.
    """
    from PIL import Image

    return reading(
        path, lambda: read_image(path, at_least=at_least, most_pixels=Image.MAX_IMAGE_PIXELS)
    )[0]


def reading(path, read):
    """`(reason, None)` why a file cannot be read by a function, or `(None, what it returned)`."""
    if printable(path.name) != path.name:
        return "the name is no UTF-8", None
    try:
        return None, read()
    except FileNotFoundError:
        return ("is a link to nothing" if path.is_symlink() else "is not there any more"), None
    except MemoryError:
        return "does not fit into memory", None
    except ValueError as error:
        return explain(path, error), None


def explain(path, error):
    """A few words for what `read_image` raised for a file."""
    from PIL import Image, UnidentifiedImageError

    cause = error.__cause__
    if isinstance(cause, PermissionError):
        return "may not be read (permission denied)"
    if isinstance(cause, UnidentifiedImageError):
        with open(path, "rb") as file:
            head = file.read(512)
        if not head:
            return "is empty"
        if b"\0" not in head and _is_text(head):
            return "is text, not an image"
        return "is no image that Pillow reads"
    if isinstance(cause, Image.DecompressionBombError):
        return f"is too large ({cause})"
    if cause is None:  # 32 bits per channel, which read_image refuses itself
        return str(error).partition(" Received: ")[0].rstrip(".")
    if isinstance(cause, ValueError) and str(cause).startswith("is "):
        return str(cause)
    return f"is damaged ({cause or type(cause).__name__})"


def _is_text(head):
    try:
        head[:-4].decode("utf-8") if len(head) == 512 else head.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def printable(name):
    """A file's name as text that can be printed; bytes that are no UTF-8 become `\\xNN`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace") if os.name == "posix" else name


def shown(path, folder):
    """A path within a folder, printable."""
    return printable(str(path.relative_to(folder)))


def count(number, noun):
    """`1 file`, `2 files`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def refusal(folder, problems, skippable=0, what="", use="trained"):
    """A message that refuses a folder, to be trained or evaluated on, for all of its problems."""
    required = f"The folder must be fit to be {use} on."
    return refusal_for(required, folder, problems, skippable, what)


def refusal_for(required, received, problems, skippable=0, what=""):
    """A message that refuses a path for all of its problems; `required` is what must hold.

    With `skip_bad`, as many as `skippable` of them would be left out, which are called `what`.
    """
    lines = [f"{required} Received: {received} with"]
    lines += [f"  {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN} more ({len(problems)} in all)")
    if skippable:
        others = len(problems) - skippable
        only = f" Not the other {count(others, 'problem')}." if others else ""
        lines.append(f"--skip-bad leaves out {what}.{only}")
    return "\n".join(lines)


def check_share(name, value):
    """Raises ValueError unless a share of the images is more than 0 and less than 1."""
    if not 0 < value < 1:
        raise ValueError(f"{name} must be more than 0 and less than 1. Received: {name}={value}")
