"""The commands, put together."""

from importlib import metadata
from typing import Annotated

import typer

from tensorflow_ranger_cli.commands.info import info
from tensorflow_ranger_cli.commands.plan import plan
from tensorflow_ranger_cli.commands.predict import predict
from tensorflow_ranger_cli.commands.report import report
from tensorflow_ranger_cli.commands.tasks import tasks
from tensorflow_ranger_cli.commands.train import train
from tensorflow_ranger_cli.options import GroupedCommand

app = typer.Typer(
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "color": False},
)
app.command(cls=GroupedCommand)(train)
app.command()(tasks)
app.command()(predict)
app.command()(plan)
app.command()(report)
app.command()(info)


def _print_version(asked: bool):
    if asked:
        typer.echo(f"tensorflow-ranger {metadata.version('tensorflow-ranger')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def overview(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
):
    """Exact large-batch training in small memory, for Keras 3."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
