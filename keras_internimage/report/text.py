"""Names of users' classes and files, made fit to be drawn."""

import unicodedata

# Looked for, in this order, where DejaVu Sans, which comes with matplotlib, lacks a character.
FALLBACK_FAMILIES = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP"),
    *("Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "MS Gothic", "Malgun Gothic", "Nirmala UI"),
    *("PingFang SC", "Hiragino Sans", "Hiragino Sans GB", "Apple SD Gothic Neo", "NanumGothic"),
    *("Noto Sans", "Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Hebrew", "FreeSans"),
    *("Arial Unicode MS", "Unifont"),
)
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def clean(text):
    """One line of text that can be encoded.

    Control characters become spaces. A byte of a file's name that is not UTF-8, and hence a lone
    surrogate in Python, becomes the replacement character.
    """
    text = unicodedata.normalize("NFC", str(text))
    kinds = {"Cc": " ", "Zl": " ", "Zp": " ", "Cs": "\N{REPLACEMENT CHARACTER}"}
    return "".join(kinds.get(unicodedata.category(x), x) for x in text)


class Lettering:
    """The fonts that can draw some texts, and how wide these are.

    Args:
        texts: all that will be drawn; fonts are chosen for their characters.
    """

    def __init__(self, texts=()):
        from matplotlib import font_manager

        needed = {ord(x) for text in texts for x in clean(text)}
        installed = set(font_manager.get_font_names())
        self.families, self._fonts = ["DejaVu Sans"], []
        for family in ("DejaVu Sans", *(x for x in FALLBACK_FAMILIES if x in installed)):
            path = font_manager.findfont(font_manager.FontProperties(family=family))
            font = font_manager.get_font(path)
            missing = {x for x in needed if not font.get_char_index(x)}
            if family != "DejaVu Sans" and missing == needed:
                continue
            if family != "DejaVu Sans":
                self.families.append(family)
            self._fonts.append(font)
            needed = missing
        self.missing = {chr(x) for x in needed}

    def drawable(self, text, instead=None):
        """`clean(text)`, characters that no font has as the replacement character.

        Where little of the text would be left, it is `instead`, unless that is None.
        """
        text = clean(text)
        lost = sum(x in self.missing for x in text)
        if instead is not None and lost > len(text) / 4:
            return instead
        return "".join("\N{REPLACEMENT CHARACTER}" if x in self.missing else x for x in text)

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


def short_path(path):
    """The file's name and its folder's, enough to find an image of a folder by class."""
    import pathlib

    return "/".join(pathlib.Path(path).parts[-2:])
