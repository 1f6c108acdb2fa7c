"""Fonts that are newer than matplotlib's list of fonts."""

# Of planes for private use: no font of this machine has them.
RARE, OTHER = "\U000f1234", "\U000f1235"


def make_font(path, family, characters, width=1234):
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (700, 700), (700, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    glyphs = [".notdef", *(f"g{i}" for i in range(len(characters)))]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(glyphs)
    font.setupCharacterMap({ord(x): f"g{i}" for i, x in enumerate(characters)})
    font.setupGlyf(dict.fromkeys(glyphs, square))
    font.setupHorizontalMetrics({name: (width, 0) for name in glyphs})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupOS2()
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupPost()
    font.save(path)


def list_without(folder, monkeypatch):
    """Makes a folder the one in which matplotlib looks for fonts that its list lacks."""
    from matplotlib import font_manager

    manager, find = font_manager.fontManager, font_manager.findSystemFonts
    monkeypatch.setattr(manager, "ttflist", list(manager.ttflist))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: find([str(folder)]))
    return manager._findfont_cached.cache_clear
