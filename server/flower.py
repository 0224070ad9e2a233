"""The coordinator's Flower server, in this process: every private name of flwr that the coordinator uses is here.

The SuperLink's state (nodes, messages, objects; SQLite) is used directly; nothing of its Control or Runtime API is
served, on any interface, because those APIs let whoever reaches them become the coordinator. Sites reach one TLS
listener that passes only the Fleet API and the health check (`fedpath.server.listener`). A message is one Flower
message with one array: the bytes that `fedpath.core.exchange` made.
"""

import logging
import os
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

# Before flwr is imported: it reads these at import.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import (
    ISOLATION_MODE_PROCESS,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    TIMESTAMP_HEADER,
    TRANSPORT_TYPE_GRPC_RERE,
    ErrorCode,
    SubStatus,
)
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, NOOP_FEDERATION_ID, NodeStatus, TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from google.protobuf.message import DecodeError
from sqlalchemy.exc import DBAPIError
from starlette.concurrency import run_in_threadpool

from fedpath.core.asgi import App, Receive, Scope, Send
from fedpath.core.errors import DataError, FederationError
from fedpath.core.exchange.transfer import Request
from fedpath.core.exchange.wire import BLOB, REASON_HEADER
from fedpath.server.database import explained
from fedpath.server.listener import Listener, answer
from fedpath.server.tensors import Tensors
from fedpath.server.traffic import Traffic, moment_in

_TASK_HEARTBEAT_S = 20.0
_MOVING_S = 12.0
"""As long as a site's own heartbeats say."""
_ACTIVATE = "/v1/fleet/activate-node"
_NEXT = "/v1/fleet/pull-messages"
_UPLOADS = frozenset({"/v1/fleet/push-messages", "/v1/fleet/push-object"})
_OK, _PRECONDITION_FAILED = 200, 412
_REASON = REASON_HEADER.encode()
_KEY_HEADER = FLEET_HTTP_PUBLIC_KEY_HEADER.encode()
_TIME_HEADER = TIMESTAMP_HEADER.encode()


Moved = Callable[[str, str, int, int], None]
"""Told of large arrays on their way: site, "fetching" or "sending", bytes that are over, bytes of the whole."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """A message that was sent and is to be answered."""

    site: str
    message_id: str


@dataclass(frozen=True, slots=True)
class Lost:
    """No answer will come: the site went away, or its answer is broken."""

    reason: str


@dataclass(slots=True)
class _Arriving:
    """An answer whose pieces are being uploaded."""

    site: str
    message_id: str
    object_ids: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)
    abandoned: bool = False
    """The process that uploaded it is dead: what is not here does not come."""

    def missing(self) -> list[str]:
        """Return the pieces that are not here yet."""
        return [object_id for object_id in self.object_ids if object_id not in self.contents]


class FlowerServer:
    """Serves the Fleet API and exchanges bytes with registered sites.

    Args:
        database: SQLite file of the SuperLink's state.
        public_keys: the sites that may connect, by name, with the keys that identify them.
        listener: where to serve; see `fedpath.server.listener`.
        moved: told now and then, in some thread, of a file of arrays that is on its way (`fedpath.server.tensors`):
            the site, "fetching" or "sending", the bytes that are over, and those of the whole.
    """

    def __init__(
        self,
        *,
        database: Path,
        public_keys: Mapping[str, ec.EllipticCurvePublicKey],
        listener: Listener,
        moved: Moved | None = None,
    ) -> None:
        database.parent.mkdir(parents=True, exist_ok=True)
        _log_to(database.with_suffix(".log"))
        self._database = database
        self._failure: OSError | DataError | None = None
        self._app = create_app(_lifespan_config(database), SuperLinkLifespan)
        self._state: LinkState = self._app.state.linkstate_factory.state()
        self._listener = listener
        self._moved = moved
        self.tensors = Tensors(database.parent, public_keys, self._note_move)
        self.traffic = Traffic(public_keys)
        self._public_keys = dict(public_keys)
        self._sites: dict[int, str] = {}
        for site, key in public_keys.items():
            self._sites[self._register(site, key)] = site
        self._nodes = {site: node for node, site in self._sites.items()}
        # By id of the message sent: those without an answer, with the site, and the answers whose envelope has come.
        self._outstanding: dict[str, str] = {}
        self._answers: dict[str, _Arriving | Lost] = {}
        self._lock = threading.Lock()
        self._news, self._heard = threading.Condition(), 0
        self._arrivals: dict[str, int] = {}
        self._received: dict[str, list[str]] = {}
        self._run_id: int | None = None
        self._task_id = 0
        self._stop = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="task-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._end_earlier_runs()
        watched = _Watched(self._app, self._public_keys, self)
        self._listener.start(watched, self.traffic.of_files(self.tensors.app))
        self._open_run()
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._heart.join()
        try:
            if self._run_id is not None:
                status = SubStatus.COMPLETED if kind is None else SubStatus.STOPPED
                self._state.finish_task(self._task_id, status, "")
                self._state.cleanup_run(self._run_id)
        except DBAPIError:
            # Where the disk is why it ends, nothing can be written down; the next start ends what is left open.
            if kind is None:
                raise
        finally:
            self._listener.stop()
        if kind is None:
            self.tensors.clear()

    def online(self) -> set[str]:
        """Return the sites whose agents are connected.

        Raises:
            OSError, DataError: a site's call could not be served, for the disk is full or the state is damaged.
        """
        if self._failure is not None:
            raise self._failure
        online = self._state.get_node_info(statuses=[NodeStatus.ONLINE])
        return {self._sites[node.node_id] for node in online if node.node_id in self._sites}

    def send(self, site: str, message_type: str, group: str, content: bytes, *, ttl_s: float) -> Ticket:
        """Send ``content`` to a site; it waits there until the site fetches it.

        Args:
            site: a registered site.
            message_type: Flower's: "query", "train" or "evaluate".
            group: the round, for Flower's records.
            content: a message of `fedpath.core.exchange`.
            ttl_s: seconds after which neither the message nor an answer to it is delivered.
        """
        record = ArrayRecord({BLOB: Array(dtype="uint8", shape=(len(content),), stype="safetensors", data=content)})
        message = Message(RecordDict({BLOB: record}), self._nodes[site], message_type, ttl=ttl_s, group_id=group)
        run_id = TaskIdentity.run_id
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            objects, tree = get_all_nested_objects(message), get_object_tree(message)
            session = self._state.start_session(run_id)
            # In one: whoever collects answers meanwhile would be told that there is no such message.
            with self._lock:
                stored, missing = self._state.store_message_and_object_tree(
                    remove_content_from_message(message), tree, session
                )
                if stored:
                    self._outstanding[message.object_id] = site
                else:  # flower.log says why; one site's trouble is not the round's
                    self._answers[message.object_id] = Lost("it could not be asked")
            for object_id in missing:
                self._state.store_object(run_id, session, object_id, objects[object_id].deflate())
        return Ticket(site, message.metadata.message_id)

    def receive(self, ticket: Ticket) -> bytes | Lost | None:
        """Return the answer to a ticket, `Lost` when none will come, or None when it is not whole yet."""
        answer = self._answers.get(ticket.message_id)
        if answer is None:
            return None
        if isinstance(answer, _Arriving):
            for object_id in answer.missing():
                content = self._state.get_object(TaskIdentity.run_id, object_id)
                if content == b"" and not answer.abandoned:
                    return None
                if not content:  # the state gives an upload up 180 s after its last piece
                    answer = Lost("its answer did not arrive whole")
                    break
                answer.contents[object_id] = content
        del self._answers[ticket.message_id]
        if isinstance(answer, Lost):
            return answer
        with self._lock:
            self._received.setdefault(answer.site, []).append(answer.message_id)
        return _blob(answer.message_id, answer.contents)

    def wait_for_news(self, since: int, timeout_s: float) -> None:
        """Wait until something has arrived since `expect_news` gave ``since``, or the time is up."""
        with self._news:
            self._news.wait_for(lambda: self._heard != since, timeout_s)

    def expect_news(self) -> int:
        """Call this before looking whether answers are there: what arrives from now on is news.

        Returns:
            What to give to `wait_for_news`; several runs may wait at the same time.
        """
        with self._news:
            heard = self._heard
        self.collect()  # sites that have gone send nothing; Flower's state says so when it is asked
        return heard

    def arrivals(self, site: str) -> int:
        """Return how often a site has connected since this coordinator began."""
        return self._arrivals.get(site, 0)

    def note_failure(self, error: DBAPIError) -> None:
        """Let the coordinator end for what is wrong with its disk, also where a site's call found it first."""
        if (meaning := explained(self._database, error)) is not None:
            self._failure = meaning
            self._tell()

    def _tell(self) -> None:
        """Wake whoever waits for news."""
        with self._news:
            self._heard += 1
            self._news.notify_all()

    def drop(self, ticket: Ticket) -> None:
        """Forget a message: whether or not it was fetched, an answer to it is no longer wanted."""
        with self._lock:
            self._outstanding.pop(ticket.message_id, None)
            self._answers.pop(ticket.message_id, None)
        self._state.delete_messages(message_ins_ids={ticket.message_id})

    def _note_move(self, request: Request, done: int) -> None:
        """Take it for a heartbeat that a site moves bytes: over a slow link its own may come too late."""
        self._state.acknowledge_node_heartbeat(self._nodes[request.site], _MOVING_S)
        if self._moved is not None:
            way = "fetching" if request.method == "GET" else "sending"
            self._moved(request.site, way, done, request.apart.size)

    def note_upload(self) -> None:
        """A site has sent something: only that is news. Who looks for answers must not wake itself by looking."""
        self.collect()
        self._tell()

    def collect(self) -> None:
        """Take the envelopes of answers out of the state; their content stays there until it is received.

        Called as soon as a site has sent one: Flower's state gives no answer out any more once its site has left.
        """
        with self._lock:
            if not self._outstanding:
                return
            replies = self._state.get_message_res(message_ids=set(self._outstanding), run_id=TaskIdentity.run_id)
            for reply in replies:
                asked = reply.metadata.reply_to_message_id
                if asked in self._outstanding:
                    site = self._outstanding.pop(asked)
                    self._answers[asked] = self._envelope(site, reply)
            self._state.delete_messages(message_ins_ids={reply.metadata.reply_to_message_id for reply in replies})

    def uploaded(self, site: str) -> None:
        """A site asks for its next order, so it has done with uploading: what it sent is no longer needed.

        Not earlier. Objects are named by their content, so an answer is whole as soon as another site has sent the same
        one, and a site that still sends what has been removed would be told that its run is over.
        """
        if site in self._received:
            with self._lock:
                received = self._received.pop(site, [])
            for message_id in received:
                self._state.object_store.delete(message_id)

    def open_at(self, site: str) -> set[str]:
        """Return the messages to a site that have no whole answer yet."""
        with self._lock:
            arriving = {one for one, said in self._answers.items() if isinstance(said, _Arriving) and said.site == site}
            return arriving | {one for one, of in self._outstanding.items() if of == site}

    def began_anew(self, site: str, before: set[str]) -> None:
        """Take note that a site has a new agent: what the one before it was asked, nobody answers any more.

        Args:
            site: that has connected.
            before: the messages that were open when the new agent asked to be connected. Those that were sent since are
                its own.
        """
        with self._lock:
            self._arrivals[site] = self._arrivals.get(site, 0) + 1
            unanswered = before & self._outstanding.keys()
            for message_id in unanswered:
                del self._outstanding[message_id]
                self._answers[message_id] = Lost("its agent was started again")
            self._state.delete_messages(message_ins_ids=unanswered)
            for message_id in before - unanswered:
                if isinstance(arriving := self._answers.get(message_id), _Arriving):
                    arriving.abandoned = True
        self._tell()

    def _envelope(self, site: str, reply: Message) -> _Arriving | Lost:
        if reply.has_error():
            gone = reply.error.code == ErrorCode.NODE_UNAVAILABLE
            return Lost("it is not connected" if gone else f"Flower: {reply.error.reason}")
        message_id = reply.metadata.message_id
        try:
            tree = self._state.object_store.get_object_tree(message_id)
        except NoObjectInStoreError:
            return Lost("its answer did not arrive whole")
        return _Arriving(site, message_id, [node.object_id for node in iterate_object_tree(tree)])

    def _register(self, site: str, key: ec.EllipticCurvePublicKey) -> int:
        """Return the node id of a site's key, registering it where the state does not know it yet."""
        public = public_key_to_bytes(key)
        known = self._state.get_node_id_by_public_key(public)
        if known is not None:
            return known
        return self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, public, 0, name=site)

    def _end_earlier_runs(self) -> None:
        """End the runs that a coordinator that was killed left open, and drop what travelled in them.

        Before a site can ask: one that still has such an order in hand learns that its answer is not wanted any more,
        and fetches the orders of this run.
        """
        for run in self._state.get_run_info():
            if not self._state.stop_run(run.run_id):
                self._state.cleanup_run(run.run_id)

    def _open_run(self) -> None:
        """Create the Flower run under which messages travel, as its own ServerApp."""
        run_id = self._state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        (run,) = self._state.get_run_info(run_ids=[run_id])
        if run.primary_task_id is None or self._state.claim_task(run.primary_task_id) is None:
            raise FederationError(
                "Flower's state did not open a run", remedy="move flower.db out of --dir and start again"
            )
        self._state.activate_task(run.primary_task_id)
        self._run_id, self._task_id = run_id, run.primary_task_id
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, self._task_id, SUPERLINK_NODE_ID

    def _beat(self) -> None:
        while not self._stop.wait(_TASK_HEARTBEAT_S):
            try:
                self._state.acknowledge_task_heartbeat(self._task_id)
            except DBAPIError as error:
                self.note_failure(error)


def _log_to(path: Path) -> None:
    """Send what Flower has to say to a file: its refusals of single calls are no news for the operator's screen."""
    handler = _LogFile(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("flwr", logging.WARNING), ("uvicorn.error", logging.ERROR)):
        logger = logging.getLogger(name)
        for other in list(logger.handlers):
            logger.removeHandler(other)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


class _LogFile(logging.FileHandler):
    """A log that is silent about a disk that is full: whoever has work to do there says so."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Do not print that a line could not be written."""


class _Watched:
    """ASGI filter between the listener and Flower's app.

    Only the sites of federation.toml pass: a key that was registered once, for a site that is no longer listed or has a
    new kit, is still in Flower's state. (Flower verifies the signatures.) Whoever is kept out learns why, also where
    Flower refuses a site that is connected already. And the server is told after every upload, and when a site's agent
    has connected, before the site is.
    """

    def __init__(self, app: App, keys: Mapping[str, ec.EllipticCurvePublicKey], server: FlowerServer) -> None:
        self._app, self._server = app, server
        self._sites = {b64encode(public_key_to_bytes(key)): site for site, key in keys.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer it here."""
        path = scope["path"] if scope["type"] == "http" else ""
        headers = dict(scope["headers"]) if path else {}
        site = self._sites.get(headers.get(_KEY_HEADER, b""))
        if path.startswith("/v1/fleet/") and site is None:
            self._server.traffic.note_unregistered()
            return await answer(send, 401, [(_REASON, b"unregistered")])

        if path == _NEXT and site is not None:
            await run_in_threadpool(self._server.uploaded, site)
        if site is not None:
            receive, send = self._server.traffic.counted(site, moment_in(headers.get(_TIME_HEADER)), receive, send)
        before: set[str] = set()
        if path == _ACTIVATE and site is not None:
            before = await run_in_threadpool(self._server.open_at, site)

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                if path == _ACTIVATE and message["status"] == _PRECONDITION_FAILED:
                    message["headers"].append((_REASON, b"connected"))
                elif path == _ACTIVATE and message["status"] == _OK and site is not None:
                    await run_in_threadpool(self._server.began_anew, site, before)
                elif path in _UPLOADS:
                    await run_in_threadpool(self._server.note_upload)
            await send(message)

        try:
            return await self._app(scope, receive, watched)
        except DBAPIError as error:
            self._server.note_failure(error)
            raise


def _blob(message_id: str, contents: dict[str, bytes]) -> bytes | Lost:
    """Return the one array a site's answer consists of; a site that sends something else is lost, not the round."""
    try:
        message = inflate_object_from_contents(message_id, contents)
        if not isinstance(message, Message):
            return Lost("its answer is no Flower message")
        return message.content.array_records[BLOB][BLOB].data
    except (KeyError, ValueError, TypeError, IndexError, RecursionError, DecodeError) as error:
        return Lost(f"its answer holds no message of fedpath ({type(error).__name__})")


def _lifespan_config(database: Path) -> SuperLinkLifespanConfig:
    """Return a SuperLink that serves nothing by itself, knows its nodes by key and starts no process."""
    return SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        insecure=False,
        certificates=None,
        superexec_auth_secret=None,
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
