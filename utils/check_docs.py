"""Check that the documentation is true: its figures, its commands, and that it names all that is promised.

    python utils/check_docs.py           # lists what is wrong; the tests run it
    python utils/check_docs.py --fill    # writes the figures of benchmarks/results into README.md and docs/ first

A table of results stands between two markers and is made from `utils/tables/NAME.md`, Markdown with a reference in
braces for each figure: `{hoda.json#test_nats_per_image .2f}`.

    <!-- begin results: NAME -->
    ...
    <!-- end results -->

The figures in the text are listed once, in a comment at the end of the page: the figure as it is written, and the
same reference, or another source in words:

    <!-- figures
    52.26 = hoda.json#test_nats_per_image .2f
    79.17 = source: the project's README
    -->

A reference is a committed file, a path into it, and a format of Python's or `minutes`. A path `a/b` leads into objects
and lists; `name=x` finds the row of a list, and `max` is the largest number. A figure that has not been measured yet
is a dash. Each decimal, each percentage and each number of MB, ms, images/s or nats outside of code and formulas must
be in a table or in the list.
"""

import argparse
import dataclasses
import json
import pkgutil
import re
import runpy
import sys
from functools import cache
from pathlib import Path

import yaml

from igpt_hf.cli import COMMANDS
from igpt_hf.training.arguments import IGPTTrainingArguments, ModelArguments, ScriptArguments


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLES = ROOT / "utils" / "tables"
ABLATIONS = ("ablations", "ablations_of_today", "ablations_before_rotary")  # tables that benchmarks/ablations.py makes
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]  # whose commands are checked, but not figures
DASH = "—"
BLOCK = re.compile(
    r"(?P<begin><!-- begin results: (?P<name>\S+) -->\n\n)(?P<rows>.*?)(?P<end>\n<!-- end results -->)", re.DOTALL
)
LIST = re.compile(r"^<!-- figures\n(?P<lines>.*?)^-->$", re.DOTALL | re.MULTILINE)
SOURCE = r"(?P<file>[^\s{}#]+)#(?P<path>[^{}]+) (?P<format>[^\s{}]+)"
LINE = re.compile(rf"(?P<text>\S+) = (?:source: (?P<source>.+)|{SOURCE})")
REFERENCE = re.compile(rf"\{{{SOURCE}\}}")  # a figure in a template
NUMBER = re.compile(rf"(?<![\w./-])\d(?:[\d,]*\d)?(?:\.\d+)?%?(?![\w/-])(?!\.\d)|{DASH}")
UNITS = r"(?:ms|kB|MB|images/s|nats|GFLOP/s)\b"
FIGURE = re.compile(  # decimals, percentages, and whole numbers of units that are measured
    rf"(?<![\w./-])\d(?:[\d,]*\d)?(?:(?:\.\d+%?|%)(?![\w/-])(?!\.\d)|(?=\s{UNITS}))"
)
HIDDEN = re.compile(  # blocks, comments, code, formulas, addresses, sections and versions
    rf"{BLOCK.pattern}|<!--.*?-->|```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)]*\)|"
    r"(?:section|version|Python|torch|transformers)\s[\d.]+",
    re.DOTALL | re.MULTILINE,
)
COMMAND = re.compile(r"(?<![\w/])((?:scripts|benchmarks|examples|utils)/\w+\.py)([^\n|`#]*)")  # a script and its flags
FILE = re.compile(r"(?<![\w/.])(?:scripts|benchmarks|configs|examples|igpt_hf|tests|utils)/[\w/.-]+\.(?:py|yaml)")
NAME = re.compile(r"`(igpt_hf(?:\.\w+)+)")
FLAG = re.compile(r"(?<=\s)--(\w+)")
SHARED_FLAGS = {"add_data_arguments": "igpt_hf/cli.py", "benchmark_parser": "benchmarks/harness.py"}
IGPT = re.compile(r"(?<![\w-])igpt ((?:export )?[a-z]+)(?:[^\n`#]* -- )?")  # the flags before `--` are the launcher's
PROMISED = ROOT / "utils" / "promised.yaml"


# --- figures --------------------------------------------------------------------------------------------------------


@cache
def read_result(path: Path):
    """What a committed result file holds: JSON, or lines of it."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def look_up(value, path: str):
    """Follow a path into a result.

    Raises:
        LookupError: There is nothing there.
    """
    for word in path.split("/"):
        if isinstance(value, list):
            name, _, wanted = word.partition("=")
            rows = [row for row in value if str(row[name]) == wanted]
            if not rows:
                raise KeyError(word)
            value = rows[-1]
        else:
            value = max(value.values()) if word == "max" else value[word]
    return value


def figure(reference: re.Match, results: Path) -> str:
    """The figure that a reference names, as it is written.

    Raises:
        LookupError: The file is there, but not what the path asks for.
    """
    file, path, form = reference["file"], reference["path"], reference["format"]
    if not (results / file).is_file():
        return DASH
    try:
        value = look_up(read_result(results / file), path)
    except (LookupError, TypeError, AttributeError) as error:
        raise LookupError(f"{file} has no {path}") from error
    if value is None:
        return DASH
    return f"{value / 60:.0f}" if form == "minutes" else format(value, form)


def listed(text: str) -> list[re.Match]:
    """The lines of a page's list of figures.

    Raises:
        LookupError: A line that says no source.
    """
    lines = [line for match in LIST.finditer(text) for line in match["lines"].splitlines()]
    matches = [LINE.fullmatch(line) for line in lines]
    if None in matches:
        raise LookupError(f"{lines[matches.index(None)]!r} is not a line of a list of figures")
    return matches


def expected(line: re.Match, results: Path) -> str:
    """What a listed figure must be."""
    return line["text"] if line["source"] else figure(line, results)


def block(match: re.Match, results: Path) -> str:
    """A table of results with its markers, as it must be."""
    return match["begin"] + table(match["name"], results) + match["end"]


def wrong_figures(text: str, results: Path = RESULTS) -> list[str]:
    """Figures that are not those of the committed results, or have no source."""
    problems = []
    try:
        lines = listed(text)
        for line in lines:
            if line["text"] != expected(line, results):
                problems.append(f"{line['text']} should be {expected(line, results)} ({line[0]})")
        for match in BLOCK.finditer(text):
            if match[0] != block(match, results):
                problems.append(f"the table {match['name']} is not what the results make of it")
    except LookupError as error:
        return [str(error.args[0])]
    if len(re.findall("<!-- (?:begin|end) results", text)) != 2 * len(BLOCK.findall(text)):
        problems.append("a marker of results without the other one")
    if len(re.findall("<!-- figures", text)) != len(LIST.findall(text)):
        problems.append("a list of figures that does not end")
    shown = HIDDEN.sub("", text)
    names, numbers = {line["text"] for line in lines}, NUMBER.findall(shown)
    problems += [f"{name} is listed, but not on the page" for name in sorted(names - set(numbers))]
    problems += [f"{number} has no source" for number in FIGURE.findall(shown) if number not in names]
    return problems + wrong_cells(shown, names)


def wrong_cells(shown: str, names: set[str]) -> list[str]:
    """Numbers in a row of measurements that are not listed: no cell of such a row may be typed by hand."""
    rows = [row for row in re.findall(r"^\|.*$", shown, re.MULTILINE) if names & set(NUMBER.findall(row))]
    cells = [cell.strip("* ") for row in rows for cell in row.split("|")[2:]]
    return [f"the cell {cell!r} has no source" for cell in cells if NUMBER.fullmatch(cell) and cell not in names]


def fill(text: str, results: Path = RESULTS) -> str:
    """Write the figures of the committed results: the tables between markers, and the listed figures in the text.

    Raises:
        LookupError: A result file has no such figure, or it is not clear which number on the page is meant.
    """
    text = BLOCK.sub(lambda match: block(match, results), text)
    changes = changed_figures(text, results)
    numbers = NUMBER.findall(HIDDEN.sub("", text))
    for old in changes:
        if not FIGURE.fullmatch(old) and numbers.count(old) != 1:  # a whole number may stand for something else, too
            raise LookupError(f"{old} stands {numbers.count(old)} times on the page: write {changes[old]} by hand")

    def renew(match: re.Match) -> str:
        return changes.get(match[0], match[0])

    text = re.sub(f"{HIDDEN.pattern}|{NUMBER.pattern}", renew, text, flags=HIDDEN.flags)  # what is hidden stays
    return LIST.sub(lambda match: re.sub(r"^\S+(?= = )", renew, match[0], flags=re.MULTILINE), text)


def changed_figures(text: str, results: Path) -> dict[str, str]:
    """The listed figures whose results have changed, and what they are now.

    Raises:
        LookupError: Two lines list the same figure, and now differ.
    """
    new: dict[str, str] = {}
    for line in listed(text):
        old, now = line["text"], expected(line, results)
        if new.setdefault(old, now) != now:
            both = " and ".join(sorted([new[old], now]))
            raise LookupError(f"{old} is listed for what is now {both}: write them by hand")
    return {old: now for old, now in new.items() if now != old}


# --- tables ---------------------------------------------------------------------------------------------------------


def table(name: str, results: Path) -> str:
    """A table of results: a template with its figures filled in, or the variants of a file of ablations.

    Raises:
        LookupError: There is no template of this name, or a result file has no such figure.
    """
    if name in ABLATIONS:
        script = runpy.run_path(str(ROOT / "benchmarks" / "ablations.py"))
        runs = results / f"{name}.jsonl"
        return script["as_table"](script["summarize"](read_result(runs))) if runs.is_file() else ""
    template = TABLES / f"{name}.md"
    if not template.is_file():
        raise LookupError(f"no table is named {name}")
    return REFERENCE.sub(lambda match: figure(match, results), template.read_text(encoding="utf-8"))


# --- commands -------------------------------------------------------------------------------------------------------


@cache
def flags_of(script: str) -> frozenset[str]:
    """The flags that a script takes."""
    source = (ROOT / script).read_text(encoding="utf-8")
    for function, module in SHARED_FLAGS.items():
        if f"{function}(" in source:
            source += (ROOT / module).read_text(encoding="utf-8")
    own = set(re.findall(r'add_argument\(\s*"--(\w+)"', source))
    if "import parse_arguments" in source or "flags" in own:  # train.py, and what hands flags to it
        kinds = (ScriptArguments, ModelArguments, IGPTTrainingArguments)
        own |= {"config", *(field.name for kind in kinds for field in dataclasses.fields(kind))}
    return frozenset(own | {"help"})


def wrong_commands(text: str) -> list[str]:
    """Files, flags, targets of make and commands of igpt that a page names and that do not exist."""
    problems = [f"there is no igpt {name}" for name in IGPT.findall(text) if name not in COMMANDS]
    text = IGPT.sub(lambda match: f"scripts/{COMMANDS[match[1]][0]} " if match[1] in COMMANDS else match[0], text)
    problems += [f"there is no {path}" for path in FILE.findall(text) if not (ROOT / path).is_file()]
    for script, flags in COMMAND.findall(text.replace("\\\n", " ")):
        if (ROOT / script).is_file():
            problems += [f"{script} has no --{flag}" for flag in FLAG.findall(flags) if flag not in flags_of(script)]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE):
        if not re.search(rf"^{target}:", makefile, re.MULTILINE):
            problems.append(f"there is no make {target}")
    return problems


def wrong_names(text: str) -> list[str]:
    """Modules, classes and functions of the package that a page names and that do not exist."""
    problems = []
    for name in NAME.findall(text):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            problems.append(f"there is no {name}")
    return problems


def not_found(texts: list[str]) -> list[str]:
    """Promised flags and keys that no page names, as code."""
    code = "\n".join(part for text in texts for part in re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    promised = yaml.safe_load(PROMISED.read_text(encoding="utf-8"))
    return [
        f"{file}: no page names {name}"
        for file, names in promised.items()
        for name in names.split()
        if not re.search(rf"(?<![\w-]){name}\b", code)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fill", action="store_true", help="write the figures of the committed results first")
    args = parser.parse_args()
    problems = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if args.fill:
            try:
                text = fill(text)
            except LookupError as error:
                sys.exit(f"error: {page.relative_to(ROOT)}: {error.args[0]}")
            page.write_text(text, encoding="utf-8")
        found = wrong_figures(text) + wrong_commands(text) + wrong_names(text)
        problems += [f"{page.relative_to(ROOT)}: {problem}" for problem in found]
    for page in OTHERS:
        found = wrong_commands(page.read_text(encoding="utf-8"))
        problems += [f"{page.relative_to(ROOT)}: {problem}" for problem in found]
    problems += not_found([page.read_text(encoding="utf-8") for page in PAGES])
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(PAGES)} pages agree with the results, the scripts and the promises.")


if __name__ == "__main__":
    main()
