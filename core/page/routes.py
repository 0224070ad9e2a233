"""What every page answers alike: its document, its styles and scripts, and its live data."""

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from fedpath.core.page.assets import asset, page_of
from fedpath.core.page.stream import Stream


def shown(package: str, stream: Stream) -> list[Route]:
    """Return the addresses of a page that only show.

    Args:
        package: of the role's page.
        stream: its live data.
    """

    async def document(_: Request) -> Response:
        return Response(page_of(package), media_type="text/html")

    async def one_asset(request: Request) -> Response:
        what = asset(package, request.path_params["name"])
        if what is None:
            return Response("not here\n", 404, media_type="text/plain")
        # Asked for again each time: a newer fedpath has newer files under the same names.
        return Response(what[0], headers={"content-type": what[1].decode(), "cache-control": "no-cache"})

    async def events(_: Request) -> Response:
        if stream.is_full:
            return Response("too many pages are open\n", 503, media_type="text/plain")
        return StreamingResponse(stream.read(), media_type="text/event-stream")

    return [Route("/", document), Route("/assets/{name}", one_asset), Route("/events", events)]
