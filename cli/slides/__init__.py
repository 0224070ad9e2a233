"""``fedpath slides``: from slides to features, and drawn slides to try it on."""

import typer

from fedpath.cli.examples import examples
from fedpath.cli.slides.check import check_command
from fedpath.cli.slides.draw import draw_command
from fedpath.cli.slides.encode import encode_command
from fedpath.cli.slides.info import info_command
from fedpath.cli.slides.tissue import tissue_command

app = typer.Typer(
    help="Make features from slides, check slides, see and edit tissue.",
    no_args_is_help=True,
    epilog=examples(
        "fedpath slides check slides", "fedpath slides encode slides --out features --encoder seeded-conv --mpp 0.5"
    ),
)
app.command(
    "encode",
    epilog=examples(
        "fedpath slides encode slides --out features --encoder resnet50 --weights resnet50.pth --mpp 0.5 --patch 256",
        "fedpath slides encode slides --out features --encoder uni_v2 --weights uni.bin --patch 224 --workers 2",
    ),
)(encode_command)
app.command(
    "info", epilog=examples("fedpath slides info slide-1.svs", "fedpath slides info slide-1.svs slide-2.ndpi --json")
)(info_command)
app.command("check", epilog=examples("fedpath slides check slides", "fedpath slides check slides --tiles 32"))(
    check_command
)
app.command(
    "tissue",
    epilog=examples(
        "fedpath slides tissue slides --out tissue", "fedpath slides tissue slides --out tissue --outlines tissue/masks"
    ),
)(tissue_command)
app.command(
    "draw", epilog=examples("fedpath slides draw hospital-A", "fedpath slides draw hospital-B --site B --index 1")
)(draw_command)
