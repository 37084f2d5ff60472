"""The command `repsim`: parse, one library call, print."""

from __future__ import annotations

import importlib
import keyword
import sys
from typing import Any

import click

import repsim
from repsim.errors import UserError

COMMANDS = {
    "train": "Train a checkpoint, standard or adversarially.",
    "evaluate": "Clean and robust accuracy, image by image.",
    "extract": "Write the activations of every layer, clean and attacked, to a store.",
    "cka": "CKA of all layers of one condition with all layers of another.",
    "compare": "Any other similarity measure, also your own.",
    "probe": "A linear probe on every layer at once, tested clean and attacked.",
    "diff": "The difference of two results, with intervals.",
    "plot": "Draw results as heatmaps.",
    "reproduce": "A whole study, resumable, that ends in a report.",
    "arrays": "Compare activations that something else computed: .npy, .npz, HDF5.",
    "import": "Read a result that torch_cka exported, names put right.",
    "compat": "What torch_cka would compute, beside the correct values.",
    "invert": "Images that a network represents alike, and which others do so too (STIR).",
    "layers": "List a model's layers in the order in which they run.",
    "pack": "Make one file of a store that several processes wrote, or compress it.",
    "info": "Say what a checkpoint, a store or a result holds.",
}


class LazyGroup(click.Group):
    """Imports a command's module when it is called: `repsim --help` must not load torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order in which they are used."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name."""
        if name not in COMMANDS:
            return None
        where = f"{name}_" if keyword.iskeyword(name) else name  # import
        module = importlib.import_module(f"repsim.cli.{where}")
        command: click.Command = getattr(module, where)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and one-line helps, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(repsim.__version__, prog_name="repsim")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """What does adversarial training do to the representations inside a network?

    The usual way: repsim train, repsim evaluate, repsim extract, repsim cka. Each command has
    --help.
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on stderr and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    if debug:
        arguments = ["--debug", *[a for a in arguments if a != "--debug"]]
    try:
        status = cli.main(args=arguments, prog_name="repsim", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        _fail(error, _one_line(error), debug)
    except UserError as error:
        _fail(error, str(error), debug)
    except OSError as error:
        # A full disk, a folder that cannot be written, a file that went away.
        _fail(error, f"{error.filename or 'file'}: {error.strerror or error}", debug)
    except (KeyboardInterrupt, click.exceptions.Abort):
        click.echo(
            "repsim: interrupted; the same command continues what can be continued", err=True
        )
        sys.exit(130)


def _one_line(error: click.ClickException) -> str:
    message = " ".join(error.format_message().split())
    ctx = getattr(error, "ctx", None)
    return f"{message} (see {ctx.command_path} --help)" if ctx else message


def _fail(error: Exception, message: str, debug: bool) -> Any:
    if debug:
        raise error
    click.echo(f"repsim: {' '.join(message.split())}", err=True)
    sys.exit(2)
