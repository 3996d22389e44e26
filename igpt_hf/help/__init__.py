"""Help and errors of the commands: the texts beside this file, by utils/make_help.py, and the parsers' class."""

import argparse
import difflib
import sys
from pathlib import Path


TEXTS = Path(__file__).parent


def print_help(command: str, file=None):
    """Print the help of a command, without importing what the command needs."""
    path = TEXTS / f"{command.replace(' ', '_')}.txt"
    (file or sys.stdout).write(path.read_text(encoding="utf-8"))


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the flag that was probably meant."""

    def error(self, message: str):
        end = "" if message.endswith(("?", ".")) else "."
        self.exit(2, f"error: {message}{end} {self.prog} --help lists the flags.\n")

    def parse_args(self, args=None, namespace=None):
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.refuse_unknown(unknown)
        return namespace

    def refuse_unknown(self, words: list[str]):
        """End with an error that names the unknown flags and the known one that is nearest to the first."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        close = difflib.get_close_matches(words[0].partition("=")[0], flags, n=1)
        self.error(f"unknown flag {' '.join(words)}" + (f"; did you mean {close[0]}?" if close else ""))
