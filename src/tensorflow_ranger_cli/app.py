"""The commands, put together."""

import typer

from tensorflow_ranger_cli.commands.info import info
from tensorflow_ranger_cli.commands.plan import plan
from tensorflow_ranger_cli.commands.predict import predict
from tensorflow_ranger_cli.commands.report import report
from tensorflow_ranger_cli.commands.tasks import tasks
from tensorflow_ranger_cli.commands.train import train

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(train)
app.command()(tasks)
app.command()(predict)
app.command()(plan)
app.command()(report)
app.command()(info)


@app.callback(invoke_without_command=True)
def overview(context: typer.Context):
    """Exact large-batch training in small memory, for Keras 3."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
