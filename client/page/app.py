"""What the hospital's page answers."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fedpath.client.page.page import Page
from fedpath.core.page.routes import shown
from fedpath.core.page.stream import Stream

_PACKAGE = "fedpath.client.page"


def build(page: Page) -> Starlette:
    """Return the page as an ASGI app; who may see it is decided in front of it (`fedpath.core.page.guard`)."""
    stream = Stream(page.sections, page.log, page.over)

    async def stop(_: Request) -> Response:
        page.ask_to_stop()
        return JSONResponse({"says": "Stopping: what is in hand is finished first."})

    return Starlette(
        routes=[
            *shown(_PACKAGE, stream),
            Route("/api/stop", stop, methods=["POST"]),
        ]
    )
