"""What MkDocs calls while it builds the site (mkdocs.yml names this file): formulas, and examples in docstrings.

Formulas become MathML here, so that a reader's browser needs no script for them: `pymdownx.arithmatex` has marked
`$...$` and `$$...$$` outside of code as `\\(...\\)` and `\\[...\\]`.
"""

import html
import re
import unicodedata
from pathlib import Path

from griffe import Extension
from latex2mathml.converter import convert


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


def on_post_build(config, **_):
    """Let the demo's links lead to pages of the site; in the repository they lead to the .md files."""
    page = Path(config["site_dir"]) / "demo" / "index.html"
    page.write_text(re.sub(r'(href="\.\./\w+)\.md"', r'\1.html"', page.read_text("utf-8")), "utf-8")


class Examples(Extension):
    """Docstrings say `Example:`, as in Google's style guide; the parser shows code only under `Examples:`."""

    def on_object(self, *, obj, **_):
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
