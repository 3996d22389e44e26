"""Check that the documentation is true: its figures, its commands, and that it names all that is promised.

    python utils/check_docs.py           # lists what is wrong; the tests run it
    python utils/check_docs.py --fill    # writes the figures from benchmarks/results into README.md and docs/ first

A measured figure is followed by a comment that says which committed file it comes from, and how it is written:

    52.26<!-- result: hoda.json#test_nats_per_image .2f -->

A path `a/b` leads into objects and lists; `name=x` finds the row of a list, and `max` is the largest number. The last
word is a format of Python's, or `minutes`. A figure that has not been measured yet is a dash. Any other decimal or
percentage, and any number of MB, ms, images/s or nats, outside of code and formulas says where it comes from:
79.17<!-- source: the project's README -->

A whole table follows a line that says what makes it, or where it comes from, and an empty one:

    <!-- table: ablations.jsonl, benchmarks/ablations.py: summarize, as_table -->
    <!-- source: the code above -->
"""

import argparse
import dataclasses
import importlib.util
import inspect
import json
import re
import sys
from functools import cache
from pathlib import Path

from igpt_hf.cli import COMMANDS, add_data_arguments
from igpt_hf.training.arguments import IGPTTrainingArguments, ModelArguments, ScriptArguments


ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DASH = "—"
MARK = re.compile(r"(?P<text>—|[\d.,]+%?)<!-- result: (?P<file>\S+?)#(?P<path>.+?) (?P<format>\S+) -->")
TABLE = re.compile(
    r"(?P<head><!-- table: (?P<file>\S+), (?P<script>\S+): (?P<steps>[\w, ]+) -->\n\n)(?P<rows>(?:\|.*\n)*)"
)
UNITS = r"(?:ms|kB|MB|images/s|nats|GFLOP/s)\b"
FIGURE = re.compile(  # decimals, percentages, and whole numbers of units that are measured
    rf"(?<![\w./-])\d(?:[\d,]*\d)?(?:(?:\.\d+%?|%)(?!<!-- source: )(?![\w/-])(?!\.\d)|(?=\s{UNITS}))"
)
HIDDEN = re.compile(  # code, formulas, addresses, sections and versions, and figures that are marked
    rf"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]+\$|\]\([^)]*\)|(?:section|version|Python|torch|transformers) [\d.]+|"
    rf"{MARK.pattern}|[\d.,]+%?<!-- source: .*?-->|^<!-- (?:source|table): .*? -->\n\n(?:\|[^\n]*\n)*",
    re.DOTALL | re.MULTILINE,
)
COMMAND = re.compile(r"[^\n|`]*\b(?:scripts|benchmarks|examples)/\w+\.py[^\n|`]*")
FLAG = re.compile(r"(?<=\s)--(\w+)")
IGPT = re.compile(r"(?<![\w-])igpt ((?:export )?[a-z]+)(?:[^\n`#]* -- )?")  # the flags before `--` are the launcher's
# What a reader must find: scripts with their flags, and the keys of the files that they write.
PROMISED = {
    "scripts/train.py": "config data preset output_dir resume_from_checkpoint overwrite_output_dir",
    "scripts/sample.py": "labels num temperature top_p guidance_scale seed complete keep_rows output npz",
    "scripts/evaluate.py": "data split max_images samples output",
    "scripts/probe.py": "data output",
    "scripts/push_to_hub.py": "private",
    "scripts/app.py": "port",
    "all_results.json": "train_nats_per_image validation_nats_per_image test_nats_per_image test_bits_per_pixel "
    "num_parameters epochs stopped train_runtime train_images_per_second data seed monotonic_train_loss "
    "monotonic_validation_loss",
    "report.json": "num_images nats_per_image nats_per_image_marginal nats_per_image_unconditional bits_per_pixel "
    "bayes_accuracy sample_accuracy fid fid_real_floor precision recall density coverage novelty",
}


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


def figure(match: re.Match, results: Path) -> str:
    """What must stand where a mark is.

    Raises:
        LookupError: The file is there, but not what the mark asks for.
    """
    file = results / match["file"]
    if not file.is_file():
        return DASH
    try:
        value = look_up(read_result(file), match["path"])
    except (LookupError, TypeError, AttributeError) as error:
        raise LookupError(f"{match['file']} has no {match['path']}") from error
    if value is None:
        return DASH
    return f"{value / 60:.0f}" if match["format"] == "minutes" else format(value, match["format"])


def table(match: re.Match, results: Path) -> str:
    """The rows that must follow a mark: the result, through the functions of a script that it names."""
    if not (results / match["file"]).is_file():
        return ""
    spec = importlib.util.spec_from_file_location("maker", ROOT / match["script"])
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    rows = read_result(results / match["file"])
    for step in match["steps"].split(", "):
        rows = getattr(maker, step)(rows)
    return rows


def wrong_figures(text: str, results: Path = RESULTS) -> list[str]:
    """Figures that are not those of the committed results, or have no source."""
    problems = []
    for match in MARK.finditer(text):
        try:
            expected = figure(match, results)
        except LookupError as error:
            problems.append(str(error.args[0]))
            continue
        if match["text"] != expected:
            problems.append(f"{match['text']} should be {expected} ({match['file']}#{match['path']})")
    problems += [
        f"the table of {match['file']} is not what {match['script']} makes of it"
        for match in TABLE.finditer(text)
        if match["rows"] != table(match, results)
    ]
    marks = text.count("<!-- result: ")
    if marks != len(MARK.findall(text)):
        problems.append("a result comment that follows no figure, or has no format")
    shown = HIDDEN.sub("", text)
    problems += [f"{number} has no source" for number in FIGURE.findall(shown)]
    for line in text.splitlines():
        if line.startswith("|") and MARK.search(line):  # a row of measurements: no cell of it may be typed by hand
            cells = [HIDDEN.sub("", cell).strip("* ") for cell in line.split("|")[2:]]
            problems += [f"the cell {cell!r} has no source" for cell in cells if re.fullmatch(r"[\d.,%]+", cell)]
    return problems


def fill(text: str, results: Path = RESULTS) -> str:
    """Write the figures of the committed results where the marks are."""
    text = TABLE.sub(lambda match: match["head"] + table(match, results), text)
    return MARK.sub(lambda match: match[0].replace(match["text"], figure(match, results), 1), text)


# --- commands -------------------------------------------------------------------------------------------------------


@cache
def flags_of(script: str) -> frozenset[str]:
    """The flags that a script takes."""
    source = (ROOT / script).read_text(encoding="utf-8")
    own = set(re.findall(r'add_argument\(\s*"--(\w+)"', source))
    if "add_data_arguments(" in source:
        own |= set(re.findall(r'add_argument\(\s*"--(\w+)"', inspect.getsource(add_data_arguments)))
    if script == "scripts/train.py" or "flags" in own:  # `--flags ...` hands the rest to train.py
        kinds = (ScriptArguments, ModelArguments, IGPTTrainingArguments)
        own |= {"config", *(field.name for kind in kinds for field in dataclasses.fields(kind))}
    return frozenset(own | {"help"})


def wrong_commands(text: str) -> list[str]:
    """Scripts, flags, targets of make and commands of igpt that a page names and that do not exist."""
    problems = [f"there is no igpt {name}" for name in IGPT.findall(text) if name not in COMMANDS]
    text = IGPT.sub(lambda match: f"scripts/{COMMANDS[match[1]][0]} " if match[1] in COMMANDS else match[0], text)
    problems += [
        f"there is no {path}"
        for path in re.findall(r"\b(?:scripts|benchmarks|configs|examples)/[\w/.-]+\.(?:py|yaml)", text)
        if not (ROOT / path).is_file()
    ]
    for line in COMMAND.findall(text.replace("\\\n", " ")):
        script = re.search(r"(?:scripts|benchmarks|examples)/\w+\.py", line)[0]
        if (ROOT / script).is_file():
            given = FLAG.findall(line[line.index(script) :].split("#")[0])
            problems += [f"{script} has no --{flag}" for flag in given if flag not in flags_of(script)]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE):
        if not re.search(rf"^{target}:", makefile, re.MULTILINE):
            problems.append(f"there is no make {target}")
    return problems


def not_found(texts: list[str]) -> list[str]:
    """Promised flags and keys that no page names, as code."""
    code = "\n".join(part for text in texts for part in re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    missing = []
    for file, names in PROMISED.items():
        dashes = "--" if file.startswith("scripts/") else ""
        missing += [
            f"{file}: no page names {dashes}{name}"
            for name in names.split()
            if not re.search(rf"(?<![\w-]){dashes}{name}\b", code)
        ]
    return missing


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
        problems += [f"{page.relative_to(ROOT)}: {problem}" for problem in wrong_figures(text) + wrong_commands(text)]
    problems += not_found([page.read_text(encoding="utf-8") for page in PAGES])
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(PAGES)} pages agree with the results, the scripts and the promises.")


if __name__ == "__main__":
    main()
