"""Write what `igpt COMMAND --help` prints, so that help appears at once: torch alone takes seconds to import.

    python utils/make_help.py     # after a change of a script's flags; a test compares the texts with the parsers

`igpt train --help` shows the flags that people use, in groups; `igpt train --help-all` shows all of the parser.
"""

import contextlib
import io
import os
import runpy
import sys
import textwrap
from unittest.mock import patch

from igpt_hf.cli import COMMANDS, script_path
from igpt_hf.help import TEXTS
from igpt_hf.training.arguments import make_parser


WIDTH = 100
TRAIN_GROUPS = {
    "data": "data image_column label_column labels_from splits max_images split_seed skip_bad_images ink invert "
    "threshold widen_strokes margin binarize augment augment_fade_from streaming",
    "model": "preset model_name_or_path task image_size patch_size hidden_size num_hidden_layers num_attention_heads "
    "class_conditional_norm class_dropout_prob num_grids",
    "training": "num_train_epochs max_steps max_minutes early_stopping_patience per_device_train_batch_size "
    "gradient_accumulation_steps learning_rate muon_learning_rate weight_decay ema_decay "
    "built_in_guidance seed num_threads bf16",
    "output": "output_dir overwrite_output_dir resume_from_checkpoint figures report_to push_to_hub hub_model_id",
    "configuration": "config",
}


def flag_lines(action) -> str:
    """A flag and its help, as argparse lays them out."""
    flag = f"  --{action.dest}"
    text = " ".join((action.help or "").replace("%%", "%").split())
    return "\n".join([flag, *textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)])


def train_help() -> str:
    """The examples of scripts/train.py and the flags that people use, in groups."""
    parser = make_parser()
    actions = {action.dest: action for action in parser._actions}
    parts = ["usage: igpt train [FLAGS]", runpy.run_path(str(script_path("train.py")))["__doc__"].strip()]
    for name, flags in TRAIN_GROUPS.items():
        parts.append("\n".join([f"{name}:", *(flag_lines(actions[flag]) for flag in flags.split())]))
    return "\n\n".join([*parts, f"igpt train --help-all lists all {len(actions)} flags, also those of the Trainer."])


def command_help(script: str) -> str:
    """What a script prints for --help."""
    printed, argv = io.StringIO(), [script, "--help"]
    with patch.object(sys, "argv", argv), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        runpy.run_path(str(script_path(script)), run_name="__main__")
    return printed.getvalue()


def help_texts() -> dict[str, str]:
    """Command -> the text of its help."""
    texts = {command: command_help(script) for command, (script, _) in COMMANDS.items() if command != "train"}
    return {command: text.rstrip() + "\n" for command, text in {"train": train_help(), **texts}.items()}


def main():
    os.environ["COLUMNS"] = str(WIDTH)
    for command, text in help_texts().items():
        (TEXTS / f"{command.replace(' ', '_')}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
