"""Fonts that can draw the names of users' classes and files, and how wide the names are."""

import contextlib
import logging

from keras_internimage.report.text import clean

OWN = "DejaVu Sans"  # comes with matplotlib
# Looked for, in this order, where DejaVu Sans lacks a character; then any font that has it.
FALLBACK_FAMILIES = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans CJK KR",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "Droid Sans Fallback",
    "Microsoft YaHei",
    "SimHei",
    "Yu Gothic",
    "MS Gothic",
    "Malgun Gothic",
    "Nirmala UI",
    "PingFang SC",
    "Hiragino Sans",
    "Hiragino Sans GB",
    "Apple SD Gothic Neo",
    "NanumGothic",
    "Noto Sans",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans Hebrew",
    "FreeSans",
    "Arial Unicode MS",
    "Unifont",
)
# Fonts that have every character, drawn as a box or as nothing.
_NOT_FOR_READING = ("lastresort", "blank", "notdef")
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@contextlib.contextmanager
def without_font_warnings():
    """While it lasts, matplotlib does not warn of families that lack a weight.

    Only installed families are asked for, and that one has no bold is nothing a user can change.
    """
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@without_font_warnings()
def fonts_for(texts):
    """The fonts that together draw the characters of some texts.

    Where known families lack characters, fonts that were installed after matplotlib wrote its list
    of fonts are added to the list, and then any font that has the characters is taken.

    Args:
        texts: strings.

    Returns:
        `(fonts, missing)`: a dictionary of family names to `matplotlib`'s fonts, `OWN` first, and
        the set of the characters that no font has.
    """
    from matplotlib import font_manager

    needed = {x for text in texts for x in clean(text)}
    fonts = {}

    def use(family):
        nonlocal needed
        path = font_manager.findfont(font_manager.FontProperties(family=family))
        font = font_manager.get_font(path)
        missing = {x for x in needed if not font.get_char_index(ord(x))}
        if family == OWN or missing != needed:
            fonts[family] = font
            needed = missing

    def use_known():
        installed = set(font_manager.get_font_names())
        for family in FALLBACK_FAMILIES:
            if needed and family in installed:
                use(family)

    use(OWN)
    use_known()
    if needed and _add_new_fonts():
        use_known()
    for family in _others(fonts) if needed else ():
        if needed:
            use(family)
    return fonts, needed


def _add_new_fonts():
    """Adds installed fonts that matplotlib's list lacks; returns how many.

    Matplotlib reads the list from a file that it wrote once. A font that was installed later is in
    it only where that file is removed.
    """
    from matplotlib import font_manager

    manager = font_manager.fontManager
    listed = {entry.fname for entry in manager.ttflist}
    added = 0
    for path in sorted(font_manager.findSystemFonts()):
        if path not in listed:
            try:
                manager.addfont(path)
                added += 1
            except Exception:  # of damaged files it raises anything, and leaves them out itself
                continue
    return added


def _others(used):
    """Upright families of normal weight that are not used yet, those without serifs first."""
    from matplotlib import font_manager

    families = {
        entry.name
        for entry in font_manager.fontManager.ttflist
        if entry.style == "normal"
        and entry.name not in used
        and not any(x in entry.name.lower().replace(" ", "") for x in _NOT_FOR_READING)
    }
    serif = ("serif", "mincho", "batang", "myeongjo", "song", "ming")
    return sorted(families, key=lambda name: (any(x in name.lower() for x in serif), name))


class Lettering:
    """The fonts that can draw some texts, and how wide these are.

    Args:
        texts: all that will be drawn; fonts are chosen for their characters.
    """

    def __init__(self, texts=()):
        self._fonts, self.missing = fonts_for(texts)
        self.families = list(self._fonts)

    def drawable(self, text, instead=None):
        """`clean(text)`, characters that no font has as the replacement character.

        Where little of the text would be left, it is `instead`, unless that is None.
        """
        text = clean(text)
        lost = sum(x in self.missing for x in text)
        if instead is not None and lost > len(text) / 4:
            return instead
        return "".join("\N{REPLACEMENT CHARACTER}" if x in self.missing else x for x in text)

    def font_file(self, character):
        """`(path, index in the file)` of the first font that has a character; None without one."""
        for font in self._fonts.values():
            if font.get_char_index(ord(character)):
                return font.fname, getattr(font, "face_index", 0)  # since matplotlib 3.11
        return None

    def width(self, text, size, weight="normal"):
        """Of `text` at `size`, both in points."""
        from matplotlib.font_manager import FontProperties
        from matplotlib.textpath import text_to_path

        properties = FontProperties(family=self.families, size=size, weight=weight)
        return text_to_path.get_text_width_height_descent(text, properties, ismath=False)[0]

    def fitted(self, text, size, width, weight="normal"):
        """`text`, or as much of its begin and end as `width` points hold, around an ellipsis."""
        if self.width(text, size, weight) <= width:
            return text
        low, high = 0, len(text)
        while low < high:  # the most characters that fit
            middle = (low + high + 1) // 2
            if self.width(_shortened(text, middle), size, weight) <= width:
                low = middle
            else:
                high = middle - 1
        return _shortened(text, low)


def _shortened(text, kept):
    # Classes often differ in their last word, so the end is worth as much as the begin.
    tail = kept * 2 // 5
    return text[: kept - tail].rstrip() + ELLIPSIS + text[len(text) - tail :].lstrip()


def class_labels(names, lettering):
    """What pictures call the classes: their names, or numbers where no font draws the name."""
    return [lettering.drawable(name, instead=f"#{i}") for i, name in enumerate(names)]
