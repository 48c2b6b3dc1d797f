"""What a run says last."""

import atexit
import shlex
import shutil
import sys
import textwrap
from pathlib import Path


def print_last(text, stream=None):
    """Print a text when this process ends, after all that Snakemake says.

    Args:
        text: lines; on a terminal they are broken between words.
        stream: stdout unless given.
    """
    stream = stream or sys.stdout

    def show():
        lines = text.splitlines()
        if stream.isatty():
            width = shutil.get_terminal_size().columns
            lines = [
                textwrap.fill(line, width, break_on_hyphens=False, break_long_words=False) for line in lines
            ]
        # A terminal that cannot show "−" or "α" is no reason to fail.
        encoding = stream.encoding or "utf-8"
        print("\n".join(lines).encode(encoding, "replace").decode(encoding), file=stream)

    atexit.register(show)


def how_to_go_on(why, arguments=None):
    """The sentence that a run ends with that was not finished.

    Args:
        why: what happened, as "Interrupted".
        arguments: of Snakemake's process, its program first; by default this process's.
    """
    program, *options = arguments or sys.argv
    if Path(program).name == "__main__.py":
        program = "python -m snakemake"
    else:
        found = shutil.which("snakemake")
        is_on_path = found is not None and Path(found).resolve() == Path(program).resolve()
        program = "snakemake" if is_on_path else shlex.quote(program)
    command = f"{program} {shlex.join(options)}".rstrip()
    return f"{why}; what is done is kept, and this goes on with the rest: {command}"
