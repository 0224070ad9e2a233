"""What the coordinator's page answers."""

import json
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from fedpath.core.errors import ConfigError, FedpathError
from fedpath.core.page.routes import shown
from fedpath.core.page.stream import Stream, as_json
from fedpath.server.page.history import downloads, history
from fedpath.server.page.page import Page
from fedpath.server.page.proposal import choices, examined, submitted
from fedpath.server.registry import Registry, Run
from fedpath.server.registry.requests import resume, stop

_PACKAGE = "fedpath.server.page"
Answer = Callable[[Request], Awaitable[Response]]


class _NoRunError(FedpathError):
    """A run that nobody knows was asked for."""


def build(page: Page) -> Starlette:
    """Return the page as an ASGI app; who may see it is decided in front of it (`fedpath.core.page.guard`)."""
    stream = Stream(page.sections, page.log, page.over)
    federation, explaining = page.config.federation.name, partial(_explaining, page.file.parent)

    def found(registry: Registry, name: str) -> Run:
        run = registry.get(federation, name)
        if run is None:
            raise _NoRunError(f"run '{name}': there is none", remedy="look at the list of runs")
        return run

    @explaining
    async def one_run(request: Request) -> Response:
        name = request.path_params["run"]
        return _json(await page.with_registry(lambda registry: history(registry, found(registry, name))))

    @explaining
    async def form(_: Request) -> Response:
        return _json(await run_in_threadpool(choices, page.config, page.file))

    @explaining
    async def check(request: Request) -> Response:
        config = await run_in_threadpool(examined, await _content(request), page.file.parent)
        return _json({"says": f"This can be submitted: model {config.model.name}, {config.training.rounds} rounds."})

    @explaining
    async def new_run(request: Request) -> Response:
        content = await _content(request)
        config = await run_in_threadpool(examined, content, page.file.parent)
        run = await page.with_registry(lambda registry: submitted(registry, config, content, page.state))
        page.soon()
        says = f"Submitted as run {run.run}."
        if page.kind == "start":
            says += " This coordinator serves one run; the new one waits for `fedpath server serve`."
        return _json({"run": run.run, "says": says}, 201)

    def changing(do: Callable[[Registry, Run], str]) -> Answer:
        async def change(request: Request) -> Response:
            name = request.path_params["run"]
            says = await page.with_registry(lambda registry: do(registry, found(registry, name)))
            page.soon()
            return _json({"says": f"{says[0].upper()}{says[1:]}."})

        return explaining(change)

    @explaining
    async def file(request: Request) -> Response:
        run, name = request.path_params["run"], request.path_params["name"]
        path = (await page.with_registry(lambda registry: downloads(found(registry, run)))).get(name)
        if path is None:
            raise _NoRunError(f"run {run} has no file '{name}' to download", remedy="look at its list of files")
        return FileResponse(path, filename=_called(run, name), media_type="application/octet-stream")

    return Starlette(
        routes=[
            *shown(_PACKAGE, stream),
            Route("/api/form", form),
            Route("/api/check", check, methods=["POST"]),
            Route("/api/runs", new_run, methods=["POST"]),
            Route("/api/runs/{run}", one_run),
            Route("/api/runs/{run}/stop", changing(stop), methods=["POST"]),
            Route("/api/runs/{run}/resume", changing(resume), methods=["POST"]),
            Route("/files/{run}/{name:path}", file),
        ]
    )


def _explaining(folder: Path, answer: Answer) -> Answer:
    """Say what is wrong as JSON, as the command line says it in two lines; paths begin in ``folder``."""

    @wraps(answer)
    async def answering(request: Request) -> Response:
        try:
            return await answer(request)
        except FedpathError as error:
            status = 404 if isinstance(error, _NoRunError) else 400 if isinstance(error, ConfigError) else 409
            return _json({"error": error.message.replace(f"{folder}/", ""), "remedy": error.remedy}, status)

    return answering


async def _content(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise ConfigError("the request holds no JSON", remedy="send it with content-type: application/json")
    try:
        content = json.loads(await request.body())
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ConfigError("the request holds no JSON object", remedy="send what the form sends")
    return content


def _called(run: str, name: str) -> str:
    return f"{run}-{Path(name).parent.name}-{Path(name).name}".replace("--", "-")


def _json(value: Any, status: int = 200) -> Response:
    return Response(as_json(value), status, media_type="application/json")
