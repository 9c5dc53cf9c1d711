"""The command `ui`, which serves the page."""

from typing import Annotated

import typer

from directions.bank.bank import Bank
from directions.commands.options import BankFolder, Device, ModelName, Precision
from directions.commands.terminal import Terminal
from flowgrad.resources import DEFAULT_MODEL

app = typer.Typer()


@app.command()
def ui(
    model: ModelName = DEFAULT_MODEL,
    bank: BankFolder = None,
    host: Annotated[
        str, typer.Option(help="Address to serve on; the default is for this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on.", min=1, max=65535)] = 7860,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Open a page to browse directions, try them on photos, train new ones, and paint. Needs the extra `ui`.

    flowgrad ui --port 7860

    Photos stay in memory, on this machine. Stop it with Ctrl-C.
    """
    from directions.page import guard, server
    from directions.page.session import Studio
    from flowgrad.models import load_model

    server.require()
    options = (*(("--model", model) if model != DEFAULT_MODEL else ()), *(("--bank", str(bank)) if bank else ()))
    studio = Studio(load_model(model, device, precision), Bank.default(bank), options, precision)
    if not guard.is_local(host):
        Terminal(False).warn("the page has no password: whoever reaches this address can use it and your bank")
    typer.echo(f"http://{host}:{port}/  (Ctrl-C stops it)")
    server.serve(studio, host, port)
