"""What the hospital's page answers."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from fedpath.client.page.page import Page
from fedpath.core.page.assets import asset, page_of
from fedpath.core.page.stream import Stream

_PACKAGE = "fedpath.client.page"


def build(page: Page) -> Starlette:
    """Return the page as an ASGI app; who may see it is decided in front of it (`fedpath.core.page.guard`)."""
    stream = Stream(page.sections, page.log, page.over)

    async def document(_: Request) -> Response:
        return Response(page_of(_PACKAGE), media_type="text/html")

    async def one_asset(request: Request) -> Response:
        what = asset(_PACKAGE, request.path_params["name"])
        if what is None:
            return Response("not here\n", 404, media_type="text/plain")
        return Response(what[0], headers={"content-type": what[1].decode(), "cache-control": "no-cache"})

    async def events(_: Request) -> Response:
        if stream.is_full:
            return Response("too many pages are open\n", 503, media_type="text/plain")
        return StreamingResponse(stream.read(), media_type="text/event-stream")

    async def stop(_: Request) -> Response:
        page.ask_to_stop()
        return JSONResponse({"says": "Stopping: what is in hand is finished first."})

    return Starlette(
        routes=[
            Route("/", document),
            Route("/assets/{name}", one_asset),
            Route("/events", events),
            Route("/api/stop", stop, methods=["POST"]),
        ]
    )
