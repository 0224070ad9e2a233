"""``fedpath slides``: from slides to features, and drawn slides to try it on."""

import typer

from fedpath.cli.slides.check import check_command
from fedpath.cli.slides.draw import draw_command
from fedpath.cli.slides.encode import encode_command
from fedpath.cli.slides.info import info_command
from fedpath.cli.slides.tissue import tissue_command

app = typer.Typer(help="From slides to features.", no_args_is_help=True)
app.command("encode")(encode_command)
app.command("info")(info_command)
app.command("check")(check_command)
app.command("tissue")(tissue_command)
app.command("draw")(draw_command)
