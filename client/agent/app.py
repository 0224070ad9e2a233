"""The ClientApp installed at this hospital: Flower messages in, Flower messages out, the work done by `Worker`."""

from collections.abc import Callable

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedpath.client.agent.transfer import Carrier
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.messages import Answer, Order, decode_order
from fedpath.core.exchange.parcel import Parcel, write_parcel
from fedpath.core.exchange.wire import BLOB, Apart, Arrays, apart_from

Handler = Callable[[Order, Arrays], tuple[Answer, Arrays]]
Arrival = Callable[[Order, int, bool], None]
Departure = Callable[[Parcel, Order, Answer, Arrays], None]


def build_client_app(carry_out: Handler, arrived: Arrival, leaving: Departure, carrier: Carrier) -> ClientApp:
    """Return the ClientApp of this process.

    Args:
        carry_out: does what an order asks.
        arrived: called with every order before anything is done, with its bytes, and whether a file of them is still to
            be fetched.
        leaving: called with every answer before it is handed to the network.
        carrier: fetches what travels apart from an order. What travels apart from an answer is for the caller to send,
            before the answer.
    """
    app = ClientApp()

    def handle(message: Message, _context: Context) -> Message:
        order, arrays, apart = order_in(message)
        size = len(message.content.array_records[BLOB][BLOB].data) + (0 if apart is None else apart.size)
        arrived(order, size, apart is not None)
        if apart is not None:
            arrays = carrier.fetch(apart)
        answer, trained = carry_out(order, arrays)
        parcel = write_parcel(answer, trained, carrier.answer_file)
        leaving(parcel, order, answer, trained)
        return reply_to(message, parcel.content)

    app.train()(handle)
    app.evaluate()(handle)
    app.query()(handle)
    return app


def order_in(message: Message) -> tuple[Order, Arrays, Apart | None]:
    """Return the order a message carries, its arrays, and the file that these are in, if they are in one.

    Raises:
        RefusedError: it carries none.
    """
    try:
        content = message.content.array_records[BLOB][BLOB].data
    except KeyError:
        raise RefusedError(
            "a message without an order came", remedy="run the same version of fedpath on both sides"
        ) from None
    return *decode_order(content), apart_from(content)


def reply_to(message: Message, content: bytes) -> Message:
    """Return the Flower message that carries ``content`` back."""
    record = ArrayRecord({BLOB: Array(dtype="uint8", shape=(len(content),), stype="safetensors", data=content)})
    return Message(RecordDict({BLOB: record}), reply_to=message)
