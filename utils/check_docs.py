"""Check that the documentation is true: its figures, its commands, and that it names all that is promised.

    python utils/check_docs.py           # lists what is wrong; the tests run it
    python utils/check_docs.py --fill    # writes the figures of benchmarks/results into README.md and docs/ first

A table of results stands between two markers and is made by `TABLES[NAME]`, below:

    <!-- begin results: NAME -->
    ...
    <!-- end results -->

The figures in the text are listed once, in a comment at the end of the page: the figure as it is written, and the
committed file that it comes from with a path and a format, or another source in words:

    <!-- figures
    52.26 = hoda.json#test_nats_per_image .2f
    79.17 = source: the project's README
    -->

A path `a/b` leads into objects and lists; `name=x` finds the row of a list, and `max` is the largest number. The last
word is a format of Python's, or `minutes`. A figure that has not been measured yet is a dash. Each decimal, each
percentage and each number of MB, ms, images/s or nats outside of code and formulas must be in a block or in the list.
"""

import argparse
import dataclasses
import importlib.util
import inspect
import json
import pkgutil
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
BLOCK = re.compile(
    r"(?P<begin><!-- begin results: (?P<name>\S+) -->\n\n)(?P<rows>.*?)(?P<end>\n<!-- end results -->)", re.DOTALL
)
LIST = re.compile(r"^<!-- figures\n(?P<lines>.*?)^-->$", re.DOTALL | re.MULTILINE)
LINE = re.compile(r"(?P<text>\S+) = (?:source: (?P<source>.+)|(?P<file>[^\s#]+)#(?P<path>.+) (?P<format>\S+))")
REFERENCE = re.compile(r"\{(?:(?P<file>[^\s{}#]+)#)?(?P<path>[^{}]+) (?P<format>[^\s{}]+)\}")  # a figure in a template
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
COMMAND = re.compile(r"[^\n|`]*(?<![\w/])(?:scripts|benchmarks|examples)/\w+\.py[^\n|`]*")
FILE = re.compile(r"(?<![\w/.])(?:scripts|benchmarks|configs|examples|igpt_hf|tests|utils)/[\w/.-]+\.(?:py|yaml)")
NAME = re.compile(r"`(igpt_hf(?:\.\w+)+)")
FLAG = re.compile(r"(?<=\s)--(\w+)")
IGPT = re.compile(r"(?<![\w-])igpt ((?:export )?[a-z]+)(?:[^\n`#]* -- )?")  # the flags before `--` are the launcher's
# What a reader must find: scripts with their flags, and the keys of the files that they write.
PROMISED = {
    "scripts/train.py": "config data preset output_dir resume_from_checkpoint overwrite_output_dir",
    "scripts/sample.py": "labels num temperature top_p guidance_scale seed complete keep_rows mask output npz",
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


def figure(file: str, path: str, form: str, results: Path) -> str:
    """A figure of a result file, as it is written.

    Raises:
        LookupError: The file is there, but not what the path asks for.
    """
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
        raise LookupError(f"{lines[matches.index(None)]!r} is no line of a list of figures")
    return matches


def expected(line: re.Match, results: Path) -> str:
    """What a listed figure must be."""
    return line["text"] if line["source"] else figure(line["file"], line["path"], line["format"], results)


def block(match: re.Match, results: Path) -> str:
    """A table of results with its markers, as it must be."""
    if match["name"] not in TABLES:
        raise LookupError(f"no table is named {match['name']}")
    return match["begin"] + TABLES[match["name"]](results) + match["end"]


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
    problems = []
    for row in re.findall(r"^\|.*$", shown, re.MULTILINE):
        cells = [cell.strip("* ") for cell in row.split("|")[2:]]
        if names & set(NUMBER.findall(row)):
            problems += [
                f"the cell {cell!r} has no source" for cell in cells if NUMBER.fullmatch(cell) and cell not in names
            ]
    return problems


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
    new = {}
    for line in listed(text):
        new.setdefault(line["text"], set()).add(expected(line, results))
    for old, texts in new.items():
        if len(texts) > 1:
            raise LookupError(f"{old} is listed for what is now {' and '.join(sorted(texts))}: write them by hand")
    return {old: texts.pop() for old, texts in new.items() if texts != {old}}


# --- tables ---------------------------------------------------------------------------------------------------------


def template(file: str, text: str):
    """The maker of a table: `{path format}` is a figure of the file, `{another.json#path format}` of another."""

    def make(results: Path) -> str:
        def one(match: re.Match) -> str:
            return figure(match["file"] or file, match["path"], match["format"], results)

        return REFERENCE.sub(one, text.lstrip("\n"))

    return make


def ablations(file: str):
    """The maker of a table of variants, by the functions of benchmarks/ablations.py."""

    def make(results: Path) -> str:
        if not (results / file).is_file():
            return ""
        spec = importlib.util.spec_from_file_location("ablations", ROOT / "benchmarks" / "ablations.py")
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        return script.as_table(script.summarize(read_result(results / file)))

    return make


HODA = """
| test split | | command |
|---|---|---|
| class-conditional NLL, nats/image | **{test_nats_per_image .2f}** ± {test_nats_per_image_stderr .2f} | \
`accelerate launch scripts/train.py --data RemainingSamples.cdb --output_dir runs/hoda --num_threads 1` \
({train_runtime minutes} minutes on one core) |
| the same with `--seed 1` and `--seed 2`, `--split_seed 42` | {seeds.json#seed=1/test_nats_per_image .2f} and \
{seeds.json#seed=2/test_nats_per_image .2f} | |
| the same on the validation split | {validation_nats_per_image .2f} | |
| marginal NLL: class unknown, exact mixture over the classes | {hoda_report.json#nats_per_image_marginal .2f} | \
`python scripts/evaluate.py runs/hoda --data RemainingSamples.cdb --samples 5000 --output report.json` |
| unconditional NLL: from the start token | {hoda_report.json#nats_per_image_unconditional .2f} | |
| accuracy, by Bayes' rule | {hoda_report.json#bayes_accuracy .2%} | |
| samples classified as their class (real digits: {hoda_report.json#classifier_test_accuracy .1%}) | \
{hoda_report.json#sample_accuracy .1%} | |
| FID on a classifier's features (real against real: {hoda_report.json#fid_real_floor .2f}) | \
{hoda_report.json#fid .2f} | |
| accuracy, linear probe on the best layer | {probe.json#test_accuracy .2%} | \
`python scripts/probe.py runs/hoda --data RemainingSamples.cdb --output probe.json` |
| accuracy, fine-tuned | {finetune.json#test_accuracy .2%} | \
`accelerate launch scripts/train.py --task classification \
--model_name_or_path runs/hoda --data RemainingSamples.cdb --num_train_epochs 4 --output_dir runs/classifier` |
"""
IMAGEGPT = """
| | igpt_hf is faster by | command |
|---|---|---|
| training, images/s, each at its best batch size | **{train_ratio .0f}x** | \
`python benchmarks/speed.py --output speed.json` |
| `generate`, 1 image; 64 images | **{generate_ratio_b1 .0f}x**; {generate_ratio_b64 .0f}x | |
| log-likelihood, images/s | {likelihood_ratio .0f}x | |
"""
CLASS_DROPOUT = """
| class dropout | class-conditional NLL | marginal NLL | unconditional NLL | accuracy, by Bayes' rule |
|---|---|---|---|---|
""" + "".join(
    f"| {label} | {{dropout={rate}/nats_per_image .2f}} | {{dropout={rate}/nats_per_image_marginal .2f}} | "
    f"{{dropout={rate}/nats_per_image_unconditional .2f}} | {{dropout={rate}/bayes_accuracy .2%}} |\n"
    for rate, label in (("0", "0"), ("0.1", "0.1"), ("0.2", "0.2, the default"))
)
MODELS = """
| model | parameters | minutes | validation | test, nats/image |
|---|---|---|---|---|
| igpt_hf, default recipe | {hoda.json#num_parameters ,.0f} | {hoda.json#train_runtime minutes} | \
{hoda.json#validation_nats_per_image .2f} | **{hoda.json#test_nats_per_image .2f}** |
| gated PixelCNN, class-conditional | {model=gated PixelCNN/parameters ,.0f} | {model=gated PixelCNN/minutes .0f} | \
{model=gated PixelCNN/validation .2f} | {model=gated PixelCNN/test .2f} |
| transformers' `ImageGPTForCausalImageModeling` | {stock.json#num_parameters ,.0f} | \
{stock.json#train_runtime minutes} | {stock.json#validation_nats_per_image .2f} | \
{stock.json#test_nats_per_image .2f} |
"""
SPEED = """
| | batch | ImageGPT | igpt_hf | ratio |
|---|---|---|---|---|
| training step | 64 | {train_images_per_second/stock/64 .1f} | {train_images_per_second/ours/64 ,.0f} | |
| | each at its best | {train_images_per_second/stock/max .1f} | {train_images_per_second/ours/max ,.0f} | \
**{train_ratio .0f}** |
| `generate`, whole images | 1 | {generate_images_per_second/stock/1 .2f} | \
{generate_images_per_second/ours/1 ,.0f} | **{generate_ratio_b1 .0f}** |
| | 64 | {generate_images_per_second/stock/64 .1f} | {generate_images_per_second/ours/64 ,.0f} | \
**{generate_ratio_b64 .0f}** |
| | each at its best | {generate_images_per_second/stock/max .1f} | {generate_images_per_second/ours/max ,.0f} | \
**{generate_ratio_best .0f}** |
| log-likelihood | each at its best | {likelihood_images_per_second/stock/max .0f} | \
{likelihood_images_per_second/ours/max ,.0f} | **{likelihood_ratio .0f}** |
"""
MEMORY = """
| | ImageGPT | igpt_hf | igpt_hf / ImageGPT |
|---|---|---|---|
| memory of a training step beyond the model, batch 64, MB | {train_memory_mb/stock ,.0f} | \
{train_memory_mb/ours ,.0f} | {train_memory_ratio .3f} |
| time of `import igpt_hf`, divided by that of `import torch, transformers` | | | {import_ratio .2f} |
"""
LIMITS = """
| | fraction of the matrix product's rate |
|---|---|
| training | {fraction_of_limit_train .0%} |
| log-likelihood | {fraction_of_limit_likelihood .0%} |
| `generate` | {fraction_of_limit_generate .0%} |
"""
PARTS = """
| | igpt_hf | without | ratio |
|---|---|---|---|
| training step, 32 images (one kernel for all blocks; SDPA, matrix products and a convolution) | \
{training step, 32 images/ours_ms .0f} | {training step, 32 images/library_ms .0f} | \
{training step, 32 images/ratio .1f} |
| training step, 128 images | {training step, 128 images/ours_ms .0f} | {training step, 128 images/library_ms .0f} | \
{training step, 128 images/ratio .1f} |
| log-likelihood, 64 images | {log-likelihood, 64 images/ours_ms .0f} | {log-likelihood, 64 images/library_ms .0f} | \
{log-likelihood, 64 images/ratio .1f} |
| a step of Muon (all matrices of a shape at once; `torch.optim.Muon`) | {Muon, a step/ours_ms .1f} | \
{Muon, a step/library_ms .1f} | {Muon, a step/ratio .1f} |
| `generate`, 1 image (one kernel for all steps; transformers' loop with its dynamic cache) | \
{generate, 1 image/ours_ms .1f} | {generate, 1 image/library_ms ,.0f} | {generate, 1 image/ratio .0f} |
| `generate`, 64 images | {generate, 64 images/ours_ms .0f} | {generate, 64 images/library_ms ,.0f} | \
{generate, 64 images/ratio .0f} |
"""
TABLES = {
    "hoda": template("hoda.json", HODA),
    "imagegpt": template("speed.json", IMAGEGPT),
    "ablations": ablations("ablations.jsonl"),
    "ablations_before_rotary": ablations("ablations_before_rotary.jsonl"),
    "class_dropout": template("class_dropout.json", CLASS_DROPOUT),
    "models": template("baselines.json", MODELS),
    "speed": template("speed.json", SPEED),
    "memory": template("speed.json", MEMORY),
    "limits": template("speed.json", LIMITS),
    "parts": template("parts.json", PARTS),
}


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
    """Files, flags, targets of make and commands of igpt that a page names and that do not exist."""
    problems = [f"there is no igpt {name}" for name in IGPT.findall(text) if name not in COMMANDS]
    text = IGPT.sub(lambda match: f"scripts/{COMMANDS[match[1]][0]} " if match[1] in COMMANDS else match[0], text)
    problems += [f"there is no {path}" for path in FILE.findall(text) if not (ROOT / path).is_file()]
    for line in COMMAND.findall(text.replace("\\\n", " ")):
        script = re.search(r"(?<![\w/])(?:scripts|benchmarks|examples)/\w+\.py", line)[0]
        if (ROOT / script).is_file():
            given = FLAG.findall(line[line.index(script) :].split("#")[0])
            problems += [f"{script} has no --{flag}" for flag in given if flag not in flags_of(script)]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE):
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
        found = wrong_figures(text) + wrong_commands(text) + wrong_names(text)
        problems += [f"{page.relative_to(ROOT)}: {problem}" for problem in found]
    problems += not_found([page.read_text(encoding="utf-8") for page in PAGES])
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(PAGES)} pages agree with the results, the scripts and the promises.")


if __name__ == "__main__":
    main()
