"""What MkDocs calls while it builds: adds the pages that are made of the code.

README.md, CONTRIBUTING.md, CHANGELOG.md and SECURITY.md become pages as they are; commands, the
table of models, tutorials and the API reference are made by the modules beside this one.
"""

import pathlib
import posixpath
import re
import sys

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from website import api, commands, models, tutorials  # noqa: E402

# Files of the repository that are pages, by their names there.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
# Parts of the navigation that are made here, and what makes their pages.
SECTIONS = {"COMMANDS": commands, "TUTORIALS": tutorials, "API": api}
# Pages whose tables take the place of the table of contents.
WIDE = {"models.md", "evaluation.md"}
LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)((?:#[^)\s]*)?\))")


def on_config(config):
    """Fills in the navigation."""
    for entry in config.nav:
        for title, value in entry.items():
            if isinstance(value, str) and value in SECTIONS:
                entry[title] = SECTIONS[value].navigation()
    return config


def on_files(files, config):
    """Adds the pages."""
    made = {place: (ROOT / name).read_text("utf-8") for name, place in PAGES.items()}
    made["models.md"] = models.page()
    for section in SECTIONS.values():
        made.update(section.pages())
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links as they are on the code host, turned into those of the site.

    What is no page, such as an example or a test, is shown by its path, without a link.
    """
    here = page.file.src_uri
    if here in WIDE:
        page.meta["hide"] = ["toc"]
    origin = {place: name for name, place in PAGES.items()}.get(here, posixpath.join("docs", here))
    known = {file.src_uri for file in files}

    def changed(match):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[2]))
        place = PAGES.get(target) or tutorials.page_of(target) or target.removeprefix("docs/")
        if place not in known:
            # What is not there either is left for MkDocs to complain about.
            return "\0" if (ROOT / target).exists() else match[0]
        relative = posixpath.relpath(place, posixpath.dirname(here) or ".")
        return f"{match[1]}{relative}{match[3]}"

    # A link to what is no page loses its brackets.
    text = LINK.sub(changed, markdown)
    return re.sub(r"(?<!!)\[([^\[\]]*)\0", r"\1", text)
