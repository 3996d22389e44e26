"""What MkDocs calls while it builds the site (mkdocs.yml names this file): formulas, the notebook as a page, examples.

Formulas become MathML here, so that a reader's browser needs no script for them: `pymdownx.arithmatex` has marked
`$...$` and `$$...$$` outside of code as `\\(...\\)` and `\\[...\\]`.
"""

import html
import re
import unicodedata
from pathlib import Path

from griffe import Extension
from latex2mathml.converter import convert
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter


NOTEBOOK, PAGE = "quickstart.ipynb", "notebook.md"
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
LETTER = re.compile(r'<mi mathvariant="(double-struck|script)">([A-Z])</mi>')
# What latex2mathml does not know, in other words.
COMMANDS = {r"\tfrac": r"\frac", r"\bigl": r"\big", r"\bigr": r"\big", r"\Bigl": r"\Big", r"\Bigr": r"\Big"}


def styled_letter(match: re.Match) -> str:
    """A letter of another alphabet by its own character: browsers no longer read `mathvariant`."""
    name = f"{match[1].upper()} CAPITAL {match[2]}"
    for prefix in ("", "MATHEMATICAL "):  # a few letters, such as the real numbers' R, are older than the alphabet
        try:
            return f"<mi>{unicodedata.lookup(prefix + name)}</mi>"
        except KeyError:
            continue
    raise ValueError(f"Unicode has no {name.lower()}.")


def to_mathml(latex: str, is_block: bool) -> str:
    """Turn a LaTeX formula into MathML."""
    for command, known in COMMANDS.items():
        latex = latex.replace(command, known)
    mathml = convert(latex, display="block" if is_block else "inline")
    mathml = re.sub(r"<mi>ln</mi>(?!<mo)", r'<mi>ln</mi><mspace width="0.17em"/>', mathml)
    return LETTER.sub(styled_letter, mathml)


def on_page_content(content: str, **_) -> str:
    """Replace what arithmatex marked; called by MkDocs with the HTML of each page."""
    return FORMULA.sub(lambda match: to_mathml(html.unescape(match[3]), match[2] == "["), content)


def on_files(files, config, **_):
    """Add the notebook as a page, with the outputs that are committed, for people who only want to read it."""
    text, resources = MarkdownExporter().from_filename(Path(config["docs_dir"]) / NOTEBOOK)
    text = text.replace("\n", f"\n\n*This page is a notebook: [download it]({NOTEBOOK}) to run it.*\n", 1)
    text = re.sub(r"!\[(png|jpe?g)\]\(", "![What the cell above shows](notebook/", text)
    files.append(File.generated(config, PAGE, content=text))
    for name, picture in resources["outputs"].items():
        files.append(File.generated(config, f"notebook/{name}", content=picture))
    return files


def on_page_markdown(markdown: str, page, **_) -> str:
    """Let links to the notebook lead to its page; on GitHub, which shows notebooks, they lead to the file."""
    return markdown if page.file.src_uri == PAGE else markdown.replace(f"]({NOTEBOOK})", f"]({PAGE})")


def on_post_build(config, **_):
    """Let the demo's links lead to pages of the site; in the repository they lead to the .md files."""
    page = Path(config["site_dir"]) / "demo" / "index.html"
    page.write_text(re.sub(r'(href="\.\./\w+)\.md"', r'\1.html"', page.read_text("utf-8")), "utf-8")


class Examples(Extension):
    """Docstrings say `Example:`, as in Google's style guide; the parser shows code only under `Examples:`."""

    def on_object(self, *, obj, **_):
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
