"""This site's connection to the coordinator's Fleet API: every private name of flwr that a site uses is here.

The site only ever asks: it fetches messages and uploads answers over one outgoing TLS connection, signing each request
with its node key. App bundles are not fetched at all; what runs is the ClientApp installed here.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

# Before flwr is imported: it reads these at import.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from fedpath.client.agent.kit import Kit
from fedpath.client.agent.preflight import explain_transport_error
from fedpath.client.agent.presence import Presence
from fedpath.client.agent.transfer import RunOverError
from fedpath.core.errors import ConnectionFailedError, StoppedError
from fedpath.core.exchange.wire import REASON_HEADER
from fedpath.core.monitoring.pulse import Pulse

Q = TypeVar("Q")
T = TypeVar("T")

# Two missed beats and the coordinator takes the site for gone; a killed site can then join again within half a minute.
_HEARTBEAT_S = 12.0
_RETRIED_STATUS = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 10.0
# Pieces of a message are asked for again this soon when the coordinator has not stored them yet.
_PIECE_WAIT_S, _PIECE_WAIT_CAP_S, _PIECE_TOTAL_S = 0.02, 0.5, 600.0

AGENT, _QUIET_S = "the agent", 300.0
"""Its name among the signs of life, and how long it may give none between two calls, unless it works."""

logging.getLogger("flwr").setLevel(logging.ERROR)


class _StatusError(ConnectionFailedError):
    """The coordinator answered with an HTTP status that trying again does not mend."""

    def __init__(self, kit: Kit, status: int, reason: str) -> None:
        remedy = "run the same version of fedpath on both sides; the coordinator's log says more"
        if status == httpx.codes.UNAUTHORIZED:
            remedy = "check this machine's clock, and that node.key is the one of the current kit"
        super().__init__(f"the coordinator at {kit.address} refused site {kit.site} (HTTP {status})", remedy=remedy)
        self.reason = reason


class FleetConnection:
    """An authenticated connection; use as a context manager.

    Args:
        kit: the site's kit.
        stop: set it to give up waiting for a coordinator that is away.
        away: told once, with the reason, when the coordinator goes away, and with None when it is back.
        presence: of this site's agent: the only one, so one that the coordinator takes for connected is dead.
        patience_s: how long a coordinator that is away is tried again before giving up.
        pulse: gets a sign of life with every call, and is told when the coordinator was heard.

    Raises:
        ConnectionFailedError: on entry, when the coordinator does not accept this site; later, when it stays away
            longer than ``patience_s``.
        StoppedError: ``stop`` was set while the coordinator was away.
    """

    def __init__(
        self,
        kit: Kit,
        *,
        stop: threading.Event,
        away: Callable[[str | None], None],
        presence: Presence | None = None,
        patience_s: float = 300.0,
        pulse: Pulse | None = None,
    ) -> None:
        self._pulse = pulse or Pulse()
        self._kit, self._presence, self._patience_s = kit, presence, patience_s
        self._stop, self._away, self._is_away = stop, away, False
        self._public_key = public_key_to_bytes(kit.node_key.public_key())
        self._client = FleetHttpClient.from_server_address(
            kit.address,
            False,
            kit.authority.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(kit.node_key, kit.node_key.public_key()),
            ],
        )
        self._node = Node()
        self._closing = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="node-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        request = ActivateNodeRequest(public_key=self._public_key, heartbeat_interval=_HEARTBEAT_S)
        deadline = time.monotonic() + 3 * _HEARTBEAT_S
        while True:
            try:
                response = self._retry(partial(self._client.ActivateNode, request))
                break
            except _StatusError as error:
                # A site that was killed counts as connected until its heartbeats have been missed, or it is told.
                if error.reason != "connected" or time.monotonic() > deadline:
                    raise self._not_accepted(error) from None
                if not self._bury():
                    self._pause(1.0)
        self._node = Node(node_id=response.node_id)
        if self._presence is not None:
            self._presence.node_id = self.node_id
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._heart.join()
        try:
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
        except (httpx.HTTPError, RuntimeError):
            logging.getLogger(__name__).info("the coordinator was gone before this site could say goodbye")
        self._client.close()

    @property
    def node_id(self) -> int:
        """This site's node id, as the coordinator knows it."""
        return int(self._node.node_id)

    def fetch(self) -> Message | None:
        """Return the next message with its content, or None when there is none.

        Raises:
            RunOverError: the coordinator took the message back meanwhile.
        """
        response = self._retry(partial(self._client.PullMessages, PullMessagesRequest(node=self._node)))
        if not response.messages_list:
            return None
        envelope = message_from_proto(response.messages_list[0])
        tree, run_id = response.message_object_trees[0], envelope.metadata.run_id
        pull = make_pull_object_fn_protobuf(self._retried(self._client.PullObject), self._node, run_id)
        try:
            contents = pull_objects(
                [node.object_id for node in iterate_object_tree(tree)],
                pull,
                initial_backoff=_PIECE_WAIT_S,
                backoff_cap=_PIECE_WAIT_CAP_S,
                max_time=_PIECE_TOTAL_S,
            )
        except ObjectPullError:
            raise RunOverError from None
        confirm = make_confirm_message_received_fn_protobuf(
            self._retried(self._client.ConfirmMessageReceived), self._node, run_id
        )
        confirm(envelope.metadata.message_id)
        message = inflate_object_from_contents(tree.object_id, contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = envelope.metadata.message_id
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, self.node_id, 0
        return message

    def answer(self, reply: Message, seconds: float) -> None:
        """Upload a reply.

        Args:
            reply: made with `reply_to` the message it answers.
            seconds: how long the work took, for Flower's records.

        Raises:
            RunOverError: the coordinator has ended the run.
        """
        run_id = reply.metadata.run_id
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[seconds],
            )
            response = self._retry(partial(self._client.PushMessages, request))
            push = make_push_object_fn_protobuf(
                self._retried(self._client.PushObject), self._node, run_id, response.session_id
            )
            try:
                push_objects(get_all_nested_objects(reply), push, object_ids_to_push=set(response.objects_to_push))
            except ObjectPushError:
                raise RunOverError from None

    def _bury(self) -> bool:
        """Tell the coordinator that the agent before this one is dead; return whether it was taken for connected."""
        before = None if self._presence is None else self._presence.node_id
        if before is None:
            return False
        try:
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=before))
        except (httpx.HTTPError, RuntimeError):  # a number of another coordinator's, or it is away
            return False
        return True

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=_HEARTBEAT_S)
        while not self._closing.wait(_HEARTBEAT_S / 2):
            try:
                self._client.SendNodeHeartbeat(request)
                self._pulse.note_contact()
            except httpx.HTTPError as error:
                # The next beat tries again; a coordinator that stays away is noticed by the main thread.
                logging.getLogger(__name__).info("heartbeat not delivered: %s", error)

    def _retried(self, call: Callable[[Q], T]) -> Callable[[Q], T]:
        return lambda request: self._retry(partial(call, request))

    def _retry(self, call: Callable[[], T]) -> T:
        """Call, again and again while the coordinator is away, up to the patience."""
        wait, deadline = _FIRST_WAIT_S, time.monotonic() + self._patience_s
        while True:
            self._pulse.beat(AGENT, _QUIET_S)
            try:
                result = call()
                self._pulse.note_contact()
                self._note_away(None)
                return result
            except httpx.TransportError as error:
                explained = explain_transport_error(self._kit.address, error)
                if time.monotonic() > deadline:
                    raise explained from None
                self._note_away(explained.message)
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status == httpx.codes.FORBIDDEN:
                    raise RunOverError from None
                if status not in _RETRIED_STATUS or time.monotonic() > deadline:
                    raise _StatusError(self._kit, status, error.response.headers.get(REASON_HEADER, "")) from None
            self._pause(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise StoppedError

    def _note_away(self, reason: str | None) -> None:
        """Tell of a change: the coordinator is away, or back."""
        if (reason is not None) != self._is_away:
            self._is_away = reason is not None
            self._away(reason)

    def _not_accepted(self, error: "_StatusError") -> ConnectionFailedError:
        site, address = self._kit.site, self._kit.address
        if error.reason == "connected":
            return ConnectionFailedError(
                f"site {site} is connected to {address} already", remedy="end the other agent that uses this kit"
            )
        if error.reason == "unregistered":
            return ConnectionFailedError(
                f"the coordinator at {address} does not know the key of site {site}",
                remedy="ask the operator for the current kit, or to restart the coordinator after `fedpath provision`",
            )
        return error
