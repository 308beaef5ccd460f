"""A client of the soak: what it asks for, the faults it makes, and what it must get for each."""

import asyncio
import json
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support.peer import Answer, Peer

PATIENCE = 30  # seconds for one exchange
STALLED = 20  # of one client's connections at once: each leaves when so many others have come

LIMIT = 65_536  # bytes of a body, and of a head
NEVER = 2_147_483_000  # an id that no user has
FIRST_LARGE = 500_001  # id of the users that make a page larger than the buffers of a socket
PAGE = f"/users?after={FIRST_LARGE - 1}&limit=300"


def request(method: str, path: str, body: Any = None, *headers: str) -> bytes:
    """Return the bytes of a request; a body that is no bytes becomes JSON."""
    head = f"{method} {path} HTTP/1.1\r\nHost: soak\r\n"
    if body is None:
        return (head + "\r\n".join([*headers, "", ""])).encode()
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = headers or ("Content-Type: application/json",)
    return (head + "\r\n".join([*headers, f"Content-Length: {len(content)}", "", ""])).encode() + content


@dataclass
class Client:
    """Sends one request at a time and owns the users that it changes, so that it knows what they must be."""

    address: tuple[str, int]
    number: int
    users: dict[int, str]  # their last names, as the last acknowledged change left them
    chance: random.Random = field(init=False)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind of request
    _peer: Peer | None = None
    _stalled: deque[Peer] = field(default_factory=deque)
    _sent: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.number)

    async def run(self, kinds: Iterator[str]) -> None:
        """Make one request of each kind."""
        try:
            for kind in kinds:
                self._sent += 1
                async with asyncio.timeout(PATIENCE):
                    answer = await KINDS[kind].send(self)
                self.outcomes[kind, str(answer) if answer else "none"] += 1
        finally:
            for peer in (*self._stalled, self._peer):
                if peer:
                    peer.leave()
            self._stalled.clear()
            self._peer = None

    async def ask(self, content: bytes) -> Answer:
        """Send a request over the connection that is kept, and wait for its answer."""
        self._peer = self._peer or await self.connect()
        await self._peer.send(content)
        answer = await self._peer.answer()
        if answer.closes:
            self._peer.leave()
            self._peer = None
        return answer

    async def connect(self, buffer: int = 0) -> Peer:
        return await Peer.to(self.address, buffer)

    def stall(self, peer: Peer) -> None:
        """Do no more on this connection, and leave it some time later."""
        self._stalled.append(peer)
        if len(self._stalled) > STALLED:
            self._stalled.popleft().leave()

    def any_user(self) -> int:
        return self.chance.choice(list(self.users))

    def new(self, **fields: Any) -> dict[str, Any]:
        """Return a user that nobody has created before."""
        email = f"{self.number}-{self._sent}@example.com"
        return {"fname": "Ada", "lname": "Lovelace", "email": email, "password": "correct horse", **fields}


@dataclass(frozen=True)
class Kind:
    """A kind of request: how it is made, and what comes of it."""

    send: Callable[[Client], Awaitable[Answer | None]]
    outcome: str  # status, with the code of a problem; or "none"


async def read(client: Client) -> Answer:
    user_id = client.any_user()
    answer = await client.ask(request("GET", f"/users/{user_id}"))
    user = answer.json()
    assert (user["id"], user["lname"]) == (user_id, client.users[user_id]), user
    return answer


async def list_page(client: Client) -> Answer:
    after = client.chance.randrange(FIRST_LARGE)
    answer = await client.ask(request("GET", f"/users?limit=20&after={after}"))
    ids = [user["id"] for user in answer.json()]
    assert ids == sorted(ids), ids
    assert len(ids) == 20
    assert ids[0] > after
    return answer


async def change(client: Client) -> Answer:
    user_id, lname = client.any_user(), f"Changed {client.chance.random()}"
    answer = await client.ask(request("PATCH", f"/users/{user_id}", {"lname": lname}))
    assert answer.json()["lname"] == lname
    client.users[user_id] = lname
    return answer


async def create(client: Client) -> Answer:
    user = client.new()
    answer = await client.ask(request("POST", "/users", user))
    client.users[answer.json()["id"]] = user["lname"]
    return answer


async def delete(client: Client) -> Answer:
    user_id = client.any_user()
    answer = await client.ask(request("DELETE", f"/users/{user_id}"))
    del client.users[user_id]
    return answer


def fixed(*requests: bytes) -> Callable[[Client], Awaitable[Answer]]:
    """Send one of these, and wait for its answer."""

    async def send(client: Client) -> Answer:
        return await client.ask(client.chance.choice(requests))

    return send


async def take_an_email(client: Client) -> Answer:
    return await client.ask(request("PATCH", f"/users/{client.any_user()}", {"email": "TAKEN@example.com"}))


async def take_an_id(client: Client) -> Answer:
    return await client.ask(request("POST", "/users", client.new(id=1)))


def hang_up(*sent: bytes, reset: bool = False) -> Callable[[Client], Awaitable[None]]:
    """Send one of these over a connection of its own, and leave at once."""

    async def send(client: Client) -> None:
        peer = await client.connect()
        await peer.send(client.chance.choice(sent))
        peer.leave(reset=reset)

    return send


async def hang_up_on_a_change(client: Client) -> None:
    """Nobody will know whether it was made: the first name is nobody's business but its own."""
    await hang_up(request("PATCH", f"/users/{client.any_user()}", {"fname": "Left"}))(client)


async def hang_up_in_mid_answer(client: Client) -> None:
    peer = await client.connect(buffer=4096)
    await peer.send(request("GET", PAGE))
    assert (await peer.receive(100)).startswith(b"HTTP/1.1 200")
    peer.leave(reset=client.chance.random() < 0.5)


async def read_slowly(client: Client) -> None:
    peer = await client.connect(buffer=4096)
    await peer.send(request("GET", PAGE))
    assert (await peer.receive(100)).startswith(b"HTTP/1.1 200")
    client.stall(peer)


def send_slowly(*sent: bytes) -> Callable[[Client], Awaitable[None]]:
    async def send(client: Client) -> None:
        peer = await client.connect()
        await peer.send(client.chance.choice(sent))
        client.stall(peer)

    return send


BODY = b'{"fname": "Ada", "lname": "Lovelace", "email": "ada@example.com", "password": "correct horse"}'
HEADLESS = b"POST /users HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\nContent-Le"
IN_MID_BODY = request("POST", "/users", BODY)[:-20]
CHUNKED = ("Content-Type: application/json", "Transfer-Encoding: chunked")
IN_MID_CHUNK = request("POST", "/users", None, *CHUNKED) + b'100\r\n{"fname": "A'
CHUNKS = request("POST", "/users", None, *CHUNKED) + (b"4000\r\n" + b" " * 0x4000 + b"\r\n") * 5 + b"0\r\n\r\n"
INVALID = [{}, {"fname": ""}, {"id": -1}, {"email": "nobody"}, {"password": "short"}, {"lname": "\0"}, {"age": 1}, []]
UPGRADES = [("Connection: Upgrade", f"Upgrade: {to}", "Content-Type: application/json") for to in ("h2c", "websocket")]
METHODS = [("DELETE", "/users"), ("PUT", "/users"), ("POST", "/users/1"), ("GET", "/users/authenticate")]
GARBAGE = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), b"garbage\r\n\r\n", b"\0" * 100]

# With the weight of each.
FAULTLESS = {
    "read": (Kind(read, "200"), 50),
    "list a page": (Kind(list_page, "200"), 13),
    "change": (Kind(change, "200"), 18),
    "create": (Kind(create, "201"), 1.5),
    "delete": (Kind(delete, "204"), 1),
    "authenticate": (
        Kind(fixed(request("POST", "/users/authenticate", {"email": "taken@example.com", "password": "p" * 8})), "200"),
        0.2,
    ),
    "ask whether it is ready": (Kind(fixed(request("GET", "/readyz")), "200"), 0.5),
}

FAULTS = {
    "hang up before the headers end": Kind(hang_up(HEADLESS), "none"),
    "hang up in mid-body": Kind(hang_up(IN_MID_BODY, IN_MID_CHUNK), "none"),
    "hang up before the answer": Kind(hang_up_on_a_change, "none"),
    "hang up in mid-answer": Kind(hang_up_in_mid_answer, "none"),
    "hang up with requests behind": Kind(hang_up(request("GET", f"/users/{FIRST_LARGE}") * 10), "none"),
    "hang up with RST": Kind(
        hang_up(HEADLESS, IN_MID_BODY, IN_MID_CHUNK, request("GET", f"/users/{FIRST_LARGE}"), reset=True), "none"
    ),
    "stall in mid-request, then leave": Kind(send_slowly(HEADLESS, IN_MID_BODY, IN_MID_CHUNK), "none"),
    "stall in mid-answer, then leave": Kind(read_slowly, "none"),
    "malformed JSON": Kind(fixed(*(request("POST", "/users", BODY[:-n]) for n in (1, 20))), "400 malformed-json"),
    "wrong media type": Kind(
        fixed(request("POST", "/users", BODY, "Content-Type: text/plain")), "415 unsupported-media-type"
    ),
    "body too large, declared": Kind(fixed(request("POST", "/users", b" " * (LIMIT + 1))), "413 body-too-large"),
    "body too large, in chunks": Kind(fixed(CHUNKS), "413 body-too-large"),
    "invalid fields": Kind(
        fixed(*(request("POST", "/users", each) for each in INVALID), request("GET", "/users?limit=0")),
        "422 invalid-request",
    ),
    "unknown path": Kind(fixed(request("GET", "/nothing"), request("POST", "/user", BODY)), "404 not-found"),
    "wrong method": Kind(fixed(*(request(*each) for each in METHODS)), "405 method-not-allowed"),
    "no HTTP": Kind(fixed(*GARBAGE), "400 malformed-request"),
    "huge head": Kind(fixed(request("GET", "/users", None, "X-Huge: " + "x" * LIMIT)), "431 head-too-large"),
    "email taken": Kind(take_an_email, "409 email-taken"),
    "id taken": Kind(take_an_id, "409 id-taken"),
    "unknown user": Kind(
        fixed(*(request(method, f"/users/{NEVER}") for method in ("GET", "DELETE"))), "404 user-not-found"
    ),
    "body behind an upgrade": Kind(
        fixed(*(request("PATCH", "/users/1", b'{"lname": "Taken"}', *each) for each in UPGRADES)), "200"
    ),
}

KINDS = {**{name: kind for name, (kind, _) in FAULTLESS.items()}, **FAULTS}
