"""`fedpath provision`."""

from pathlib import Path
from typing import Annotated

import typer

from fedpath.cli.examples import examples
from fedpath.cli.output import AsJson

EXAMPLES = examples(
    "fedpath provision --config federation.toml", "fedpath provision --config federation.toml --out keys"
)


def provision_command(
    config: Annotated[Path, typer.Option(help="The coordinator's federation.toml.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write; 'credentials' beside federation.toml by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make the certificate authority, the server's certificate and a kit for each hospital.

    Run it again after adding a site or when the server's certificate is about to end: what is there is kept.
    """
    from fedpath.cli.output import document
    from fedpath.core.config import load_federation
    from fedpath.server.provision import provision

    federation = load_federation(config)
    folder = (out or config.parent / "credentials").resolve()
    made = provision(federation, folder)
    if as_json:
        document(
            {"authority": folder / "ca", "authority_sha256": made.authority_fingerprint, "server": folder / "server"}
            | {"server_renewed": made.server_renewed, "new_kits": made.new_kits, "kept_kits": made.kept_kits}
        )
        return
    typer.echo(f"authority   {folder / 'ca'}   keep ca.key off the coordinator and backed up")
    typer.echo(f"            SHA-256 {made.authority_fingerprint}")
    typer.echo(f"server      {folder / 'server'}   {'new certificate' if made.server_renewed else 'kept'}")
    for kit in made.new_kits:
        typer.echo(f"kit         {kit}   new: hand it to that hospital and to nobody else")
    for kit in made.kept_kits:
        typer.echo(f"kit         {kit}   kept")
    if folder / "server" != federation.server.credentials:
        typer.echo(f'note        federation.toml has server.credentials = "{federation.server.credentials}"')
