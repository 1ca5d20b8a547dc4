"""Plugins of mailgw in Python.

A plugin is a program that calls serve() with its settings, a dataclass, and with
what makes a backend of them:

    @dataclass
    class Settings:
        users: list[str]

    class Roster:
        def __init__(self, settings: Settings) -> None: ...
        def deliver(self, tx: mailgw.DataContext) -> None: ...

    mailgw.serve(Settings, Roster)

A backend decides the fate of the recipients of mail transactions. Those that it
leaves undecided go on to the next backend of their route, with the edits that it
made. Protocol Backend says what else it may have.

This file and plugin_pb2.py, which protoc makes of plugin.proto, are all that a plugin
needs besides Python 3.11, grpcio and protobuf: Debian's python3-grpcio and
python3-protobuf. Copy both, or name their directory in PYTHONPATH.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import difflib
import enum
import errno
import functools
import hashlib
import io
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, BinaryIO, NoReturn, Protocol, TypeVar

import grpc

import plugin_pb2 as pb

# What a backend answers.


@dataclass(frozen=True)
class Status:
    """The answer for a recipient, in the form of an SMTP reply."""

    code: int  # 2yz, 4yz or 5yz
    enhanced: str = ""  # "5.1.1"; if empty, the class of code and ".0.0"
    text: str = ""  # one line or several, parted by "\n"


DELIVERED = Status(250, "2.0.0", "delivered")  # takes responsibility for the message
TRY_LATER = Status(451, "4.3.0", "try again later")
NO_SUCH_USER = Status(550, "5.1.1", "no such user")
STORAGE_FULL = Status(452, "4.3.1", "insufficient system storage, try again later")
BAD_CREDENTIALS = Status(535, "5.7.8", "authentication credentials invalid")


class StatusError(Exception):
    """A Status that is raised instead of returned."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"{status.code} {status.enhanced} {status.text}")
        self.status = status


@dataclass(frozen=True)
class Opinion:
    """What check_recipient may say besides a Status."""

    status: Status

    # For how many seconds the gateway may answer the same without asking again,
    # whoever the client and the sender are.
    seconds: float = 0

    # For which recipients: a pattern as in the routes of gateway.toml, such as
    # "@example.org". Empty is the recipient's own address.
    key: str = ""


@dataclass(frozen=True)
class SCRAMVerifier:
    """What a server keeps of a password for SCRAM-SHA-256 (RFC 5802, section 3)."""

    salt: bytes
    iterations: int
    stored_key: bytes
    server_key: bytes
    user: str = ""  # whose it is, if that is not the name that was asked about


class Edits(enum.Flag):
    """Kinds of edits. Edits(0) is none."""

    HEADER = 1  # add_field, replace_field, remove_field
    MESSAGE = 2  # replace_message
    ENVELOPE = 4  # set_sender, set_sender_params, redirect, add_recipient, divert


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do with a message. Without them it takes every one."""

    dsn: bool = False  # passes DSN parameters (RFC 3461) on
    require_tls: bool = False  # passes a message with REQUIRETLS (RFC 8689) on so, or not at all
    size: int = 0  # octets of the largest message; 0 if none is known to be too large
    eight_bit_mime: bool = True
    smtputf8: bool = True
    binary_mime: bool = True
    digest: bool = False  # calls DataContext.wrote
    relays: bool = False  # all this is what a next hop can do
    unknown: bool = False  # the next hop was not reached yet


# What the gateway tells. Octets of mail that are no UTF-8 are in a str as
# surrogates, as Python has them in names of files: nothing is lost.


class Params(tuple[str, ...]):
    """The parameters of MAIL or RCPT, as they came: "SIZE=1000", "SMTPUTF8"."""

    def lookup(self, keyword: str) -> str | None:
        """Returns the value of a parameter, "" if it has none, None if it is not there."""
        for param in self:
            name, _, value = param.partition("=")
            if name.upper() == keyword.upper():
                return value
        return None


@dataclass(frozen=True)
class Recipient:
    address: str
    params: Params = Params()


@dataclass(frozen=True)
class Envelope:
    sender: str = ""  # "" is the null reverse-path
    params: Params = Params()
    recipients: list[Recipient] = field(default_factory=list)  # none in a question


@dataclass(frozen=True)
class Peer:
    """The other end of the socket."""

    addr: str = ""  # "192.0.2.1:1234"; empty on a unix socket
    uid: int = 0
    gid: int = 0
    pid: int = 0


@dataclass(frozen=True)
class TLV:
    """An extension of version 2 of the PROXY protocol."""

    type: int
    value: bytes


@dataclass(frozen=True)
class Client:
    """What a trusted proxy told of the client; "" where it does not know."""

    source: str  # "PROXY" or "XCLIENT"
    addr: str  # "192.0.2.1:1234"; port 0 is unknown
    local: str  # that the client connected to
    name: str
    reverse_name: str
    helo: str
    protocol: str
    tlvs: list[TLV]


@dataclass(frozen=True)
class TLS:
    version: str  # "TLS 1.3"
    cipher: str
    server_name: str  # that the client asked for
    client_certificate: str  # SHA-256 in hexadecimal digits; "" if it showed none
    client_name: str  # a name in it, if a CA that the listener trusts issued it


@dataclass(frozen=True)
class XForward:
    """What XFORWARD told of the client of one transaction."""

    name: str
    addr: str
    port: str
    proto: str
    helo: str
    ident: str
    source: str
    forwarded: bool  # the client is what stands here


@dataclass(frozen=True)
class Session:
    """The connection that a transaction came over."""

    id: str
    listener: str
    protocol: str  # as after WITH in Received: "ESMTPSA", "LMTP"
    local: str
    helo: str
    user: str  # whom the client has proved to be, or ""
    mechanism: str
    gateway: str
    peer: Peer = Peer()
    client: Client | None = None
    tls: TLS | None = None
    xforward: XForward | None = None

    @property
    def client_addr(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The address of the client as far as it is known."""
        if self.xforward and self.xforward.forwarded:
            addr = self.xforward.addr
        else:
            addr = (self.client or self.peer).addr.rpartition(":")[0].strip("[]")
        try:
            return ipaddress.ip_address(addr)
        except ValueError:
            return None


@dataclass(frozen=True)
class Credentials:
    """What a client shows in AUTH."""

    mechanism: str  # "PLAIN", "LOGIN", "EXTERNAL"
    identity: str  # whom it wants to act as, if that is not user: refuse what is not allowed
    user: str  # "" with EXTERNAL: the session's tls has the certificate
    password: str = field(repr=False)


class MessageLost(OSError):
    """The rest of the message cannot be had, because the transaction has ended."""


class Backend(Protocol):
    """What serve() wants. All of it is called from several threads at once.

    A backend may have any of these besides, and is asked before there is a message, while
    the client waits for the reply to its command. None is no opinion, a 2yz accepts, a 4yz
    or 5yz refuses. An exception that is no StatusError is a failure to answer: 451.

        check_connection(session) -> Status | None
        check_helo(session) -> Status | None
        check_sender(session, envelope) -> Status | None
        check_recipient(session, envelope, recipient) -> Opinion | Status | None
        authenticate(session, credentials) -> str | Status | None, the user or a refusal
        scram_verifier(session, user) -> SCRAMVerifier | None
        verify(session, text) -> Status | None, for VRFY
        expand(session, text) -> list[str] | None, "<user@example.org>" each, for EXPN

    and these, which are read once:

        may_edit: Edits, with one beyond, the recipients that are undecided get 451
        capabilities: Capabilities
        effect_free: bool, it changes nothing outside itself, so that it can be a shadow
        needs: list[str], of the system, for the operator to read: "writes /var/mail"
        diverts_to: list[str], of [named_routes]: without one of them the gateway does not start

    watch_capabilities() -> Iterator[Capabilities] tells how they change, at once and then
    each time. close() is called before the plugin exits.
    """

    def deliver(self, tx: DataContext) -> Status | None:
        """Handles one transaction. Recipients without a status get the one that is returned
        or raised as a StatusError; if there is none, they go on to the next backend. Any
        other exception is 451 for them, and in the log.
        """


# A transaction.

MAX_CHUNK = 31 << 10  # octets that cross the border in one piece


class DataContext:
    """One mail transaction. The attributes are for reading; the methods may be called from
    several threads. What is said after the transaction has ended goes nowhere.
    """

    id: str  # stands in every log line and in the reply
    session: Session
    envelope: Envelope
    size: int  # octets of the message

    # The message, header and all, with CRLF line ends. It can be read once, need
    # not be read to its end, and may be read as long as a delivery is under way.
    # Who answers 250 has read it to its end. It raises MessageLost.
    body: io.BufferedReader

    def __init__(self, first: pb.ToPlugin, rest: Iterator[pb.ToPlugin], call: grpc.ServicerContext) -> None:
        transaction = first.transaction
        self.id = transaction.id
        self.session = _from_wire(Session, transaction.session)
        self.envelope = _from_wire(Envelope, transaction)
        self.size = transaction.size
        self.body = io.BufferedReader(_Body(first, rest), MAX_CHUNK)
        self._call = call
        self._outbox = _Outbox()
        # Held while something is sent, so that all is sent in the order in which it counts.
        self._lock = threading.RLock()
        self._replacing = threading.Lock()
        self._statuses: dict[int, Status] = {}
        self._pending: set[int] = set()  # started, and without a status
        self._returned = False
        self._edits = pb.Edits()
        if not call.add_callback(self._outbox.close):
            self._outbox.close()

    def time_remaining(self) -> float | None:
        """Returns the seconds until the deadline, when the client gets 451; None if there is none."""
        return _remaining(self._call)

    def is_over(self) -> bool:
        """Tells whether the gateway has ended the transaction: nobody wants to know more."""
        return not self._call.is_active()

    def set_status(self, i: int, status: Status) -> None:
        """Decides recipient i. The first status counts. This returns once the gateway is
        sure to get it, whatever becomes of the plugin.
        """
        self._check(i)
        with self._lock:
            if i in self._statuses:
                why = "the recipient has its status already"
            elif self._returned and i not in self._pending:
                why = "deliver had returned"
            else:
                self._send(statuses=[pb.RecipientStatus(recipient=i, status=_status(status))])
                self._statuses[i] = status
                self._pending.discard(i)
                self._settle()
                return
        logging.warning("ignored", extra={"tx": self.id, "recipient": i, "status": status.code, "reason": why})

    def set_all(self, status: Status) -> None:
        """Decides every recipient that has no status yet."""
        with self._lock:
            for i in range(len(self.envelope.recipients)):
                if i not in self._statuses and not (self._returned and i not in self._pending):
                    self.set_status(i, status)

    def status(self, i: int) -> Status | None:
        self._check(i)
        return self._statuses.get(i)

    def start_delivery(self, i: int) -> None:
        """Says that recipient i is being delivered beyond the return of deliver, in another
        thread, which calls set_status. If it does not before the deadline of the
        transaction, the recipient gets 451. It never goes on to the next backend.

        What a thread logs has the attributes of the transaction if its target is
        contextvars.copy_context().run, with your function as the first of its args.
        """
        self._check(i)
        with self._lock:
            if self._returned or i in self._statuses or i in self._pending:
                raise ValueError(f"recipient {i}: started or decided already, or deliver has returned")
            self._pending.add(i)
            self._send(started=[i])

    def set_smtp_response(self, status: Status) -> None:
        """Gives the text of the one reply that an SMTP client sees on success. It is to be
        called before the last recipient has its status, since the client may be told at once."""
        with self._lock:
            self._send(smtp_response=_status(status))

    def wrote(self, fields: Iterable[bytes], body: bytes) -> None:
        """Tells the gateway's log what of the message has left, before the statuses that come
        of it: the header fields with their CRLFs, and the SHA-256 of what follows them, zeros
        if nothing does.
        """
        numbers = b"".join(hashlib.sha256(f).digest()[:8] for f in fields)
        with self._lock:
            self._send(digest=pb.Digest(fields=numbers, body=body))

    # Edits for the backends that follow. They count if deliver returns None. The
    # gateway checks them: one that cannot be made is 451 for the undecided.

    def add_field(self, at: int, text: str) -> None:
        """Adds a header field before the one at that position, or after the last one. The text
        is "Name: value"; a folded field has CRLF before each line that continues it.
        Positions count the fields as they came: an edit does not shift them.
        """
        self._edit_field(pb.FieldEdit.ADD, at, text)

    def replace_field(self, at: int, text: str) -> None:
        self._edit_field(pb.FieldEdit.REPLACE, at, text)

    def remove_field(self, at: int) -> None:
        self._edit_field(pb.FieldEdit.REMOVE, at, "")

    def replace_message(self, message: bytes | BinaryIO) -> None:
        """Puts another message, header and all, in the place of the one at hand. A file is
        read to its end, and never in memory as a whole. The last call counts. Fields of the
        header cannot be edited beside it.
        """
        file = io.BytesIO(message) if isinstance(message, bytes) else message
        with self._replacing:
            chunk, first = file.read(MAX_CHUNK), True
            while chunk or first:
                following = file.read(MAX_CHUNK)
                with self._lock:
                    self._check_editable()
                    if self._edits.fields:
                        raise ValueError(_BOTH)
                    self._send(first=first, last=not following, chunk=chunk)
                    self._edits.message |= not following
                chunk, first = following, False

    def set_sender(self, address: str) -> None:
        """Changes the reverse-path; "" is the null reverse-path."""
        with self._lock:
            self._check_editable()
            self._edits.sender = _octets(address)

    def set_sender_params(self, params: Iterable[str]) -> None:
        """Changes the parameters of MAIL: RET, ENVID and the like are just those that are given.
        Those that tell of the message (SIZE, BODY, SMTPUTF8, REQUIRETLS, PRDR) stay, whether they
        are given or not; one that did not come so is an error.
        """
        replaced = pb.SenderParams(params=map(_octets, _strings("params", params)))
        with self._lock:
            self._check_editable()
            self._edits.sender_params.CopyFrom(replaced)

    def redirect(self, i: int, *addresses: str) -> None:
        """Sends recipient i on to other addresses. It gets the worst of their answers."""
        self._check(i)
        with self._lock:
            self._check_editable()
            self._edits.redirects.add(recipient=i, addresses=map(_octets, addresses))

    def add_recipient(self, address: str, params: Iterable[str] = ()) -> None:
        """Adds a recipient, who takes the rest of the route. No recipient of the transaction
        gets a 2yz before this one has it.
        """
        with self._lock:
            self._check_editable()
            self._edits.added.add(address=_octets(address), params=map(_octets, _strings("params", params)))

    def divert(self, i: int, route: str) -> None:
        """Sends recipient i by a route of [named_routes], a quarantine for example."""
        self._check(i)
        with self._lock:
            self._check_editable()
            self._edits.diversions.add(recipient=i, route=route)

    def _edit_field(self, op: pb.FieldEdit.Op, at: int, text: str) -> None:
        octets = _octets(text)
        # RFC 5322, section 2.2. The gateway looks closer.
        if op != pb.FieldEdit.REMOVE and not re.fullmatch(rb"[!-9;-~]+:[^\r\n]*(\r\n[ \t][^\r\n]*)*", octets):
            raise ValueError(f"{text!r} is no header field: want a name, a colon, a value; CRLF and a space to fold it")
        with self._lock:
            self._check_editable()
            if self._edits.message:
                raise ValueError(_BOTH)
            self._edits.fields.add(op=op, at=at, field=octets)

    def _check(self, i: int) -> None:
        if not 0 <= i < len(self.envelope.recipients):
            raise IndexError(f"there is no recipient {i}")

    def _check_editable(self) -> None:
        if self._returned:
            raise ValueError("edit: deliver had returned")

    def _send(self, **fields: Any) -> None:
        self._outbox.send(pb.ToGateway(**fields))

    def _return(self, result: pb.Returned) -> None:
        """Ends deliver. The call goes on for the recipients that are started."""
        with self._lock:
            self._returned = True
            self._send(returned=result)
            self._settle()

    def _settle(self) -> None:
        if self._returned and not self._pending:
            self._outbox.close()


_BOTH = "header fields and the whole message cannot both be edited"


class _Body(io.RawIOBase):
    """The message as it comes. Of what nobody reads, no more comes than gRPC's window."""

    def __init__(self, first: pb.ToPlugin, rest: Iterator[pb.ToPlugin]) -> None:
        self._chunk, self._last, self._rest = first.chunk, first.last, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._chunk and not self._last:
            try:
                message = next(self._rest)
            except (StopIteration, grpc.RpcError):
                raise MessageLost("the rest of the message cannot be had") from None
            self._chunk, self._last = message.chunk, message.last
        n = min(len(buffer), len(self._chunk))
        buffer[:n] = self._chunk[:n]
        self._chunk = self._chunk[n:]
        return n


class _Outbox:
    """Hands messages of several threads to the one that gRPC takes them with."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._message: pb.ToGateway | None = None
        self._closed = False

    def send(self, message: pb.ToGateway) -> None:
        """Returns once the octets are in the socket, or never will be. Callers take turns."""
        with self._changed:
            if self._closed:
                return
            self._message = message
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._message is None or self._closed)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Waits until nothing more is sent."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed)

    def __iter__(self) -> Iterator[pb.ToGateway]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._message is not None or self._closed)
                if self._message is None or self._closed:
                    return
                message = self._message
            yield message  # gRPC comes back when it has written it
            with self._changed:
                self._message = None
                self._changed.notify_all()


MAX_HEADER = 4 << 20  # octets that read_header takes


def read_header(body: BinaryIO) -> tuple[list[bytes], bytes]:
    """Reads the header of a message. Each field is as it came, with its CRLFs; its index is the
    position that edits want. The other octets are the line after the header, or a part of
    it if it is very long: CRLF in most messages. What follows them is left in body.
    """
    fields: list[bytes] = []
    room = MAX_HEADER
    while line := body.readline(room + 1):
        if line[0] in b" \t" and fields:
            fields[-1] += line
        elif re.match(rb"[!-9;-~]+[ \t]*:", line[:4096]):
            fields.append(line)
        else:
            return fields, line
        room -= len(line)
        if room < 0:
            raise ValueError("the header is too large")
    return fields, b""


def time_remaining() -> float | None:
    """Returns the seconds until the deadline of the transaction or question that this thread was
    called for; None if there is none.
    """
    call = _call.get()
    return _remaining(call) if call else None


def _remaining(call: grpc.ServicerContext) -> float | None:
    left: float | None = call.time_remaining()
    return left if left is not None and left < 1 << 31 else None  # gRPC has another word for never


# Settings.

S = TypeVar("S")
T = TypeVar("T")


class SettingError(ValueError):
    """What is wrong with one setting. The operator is told the line of its key. Several of them
    are raised in an ExceptionGroup.
    """

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key}: {text}")
        self.key, self.text = key, text


def _setting_errors(e: BaseException) -> list[SettingError]:
    """Returns the SettingErrors of which e consists; none if there is something else in it."""
    if isinstance(e, SettingError):
        return [e]
    parts = [_setting_errors(part) for part in getattr(e, "exceptions", ())]
    return [fault for part in parts for fault in part] if all(parts) else []


_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "m": 60, "h": 3600}
_WANTED = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}


class _Decoder:
    """Makes values of the types of a dataclass, strictly, and gathers all that is wrong."""

    def __init__(self) -> None:
        self.faults: list[SettingError] = []

    def fault(self, path: str, text: str) -> None:
        self.faults.append(SettingError(path, text))

    def structure(self, path: str, given: dict[str, Any], into: type[T]) -> T | None:
        before = len(self.faults)
        hints = typing.get_type_hints(into)
        known = {f.name: f for f in dataclasses.fields(into)}
        values = {}
        for name, f in known.items():
            if name in given:
                values[name] = self.value(_join(path, name), given[name], hints[name])
            elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                self.fault(_join(path, name), "is missing")
        for key in sorted(given.keys() - known.keys()):
            near = difflib.get_close_matches(key, known, 1)
            self.fault(_join(path, key), "unknown key" + (f"; did you mean {near[0]}?" if near else ""))
        if len(self.faults) > before:
            return None
        try:
            return into(**values)
        except SettingError as e:
            self.fault(_join(path, e.key) if path else e.key, e.text)
        except ValueError as e:
            self.fault(path, str(e))
        return None

    def value(self, path: str, given: Any, hint: Any) -> Any:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):  # X | None: a setting without a default
            hint = next(a for a in args if a is not type(None))
            origin, args = typing.get_origin(hint), typing.get_args(hint)
        if dataclasses.is_dataclass(hint) or origin is dict:
            if not isinstance(given, dict):
                return self.wrong(path, "a table", given)
            if origin is dict:
                return {key: self.value(_join(path, key), v, args[1]) for key, v in given.items()}
            return self.structure(path, given, hint)
        if origin is list:
            if not isinstance(given, list):
                return self.wrong(path, "a list", given)
            return [self.value(f"{path}[{i}]", v, args[0]) for i, v in enumerate(given)]
        if hint is timedelta:
            return self.duration(path, given)
        return self.scalar(path, given, hint)

    def scalar(self, path: str, given: Any, hint: Any) -> Any:
        if hint in (int, float) and isinstance(given, (int, float)) and not isinstance(given, bool):
            if hint is float or float(given).is_integer():
                return hint(given)
        elif hint in (str, bool) and isinstance(given, hint):
            return given
        elif hint not in _WANTED and isinstance(given, str):
            try:
                return hint(given)  # pathlib.Path, ipaddress.IPv4Address, an enum.Enum
            except ValueError as e:
                return self.fault(path, str(e))
        return self.wrong(path, _WANTED.get(hint, "a string"), given)

    def duration(self, path: str, given: Any) -> timedelta | None:
        unit = "|".join(_SECONDS)
        text = given if isinstance(given, str) else ""
        if not re.fullmatch(rf"(\d+(\.\d*)?({unit}))+", text):
            self.wrong(path, 'a duration such as "30s", "5m" or "1h30m"', given)
            return None
        return timedelta(seconds=sum(float(n) * _SECONDS[u] for n, u in re.findall(rf"([\d.]+)({unit})", text)))

    def wrong(self, path: str, want: str, given: Any) -> None:
        names = {dict: "a table", list: "a list", bool: str(given).lower(), type(None): "nothing"}
        found = names.get(type(given)) or f"the {'string' if isinstance(given, str) else 'number'} {json.dumps(given):.80}"
        self.fault(path, f"want {want}, found {found}")


def _join(path: str, key: str) -> str:
    """Returns the path of a key in the table at path, as gateway.toml has it."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        key = json.dumps(key)
    return f"{path}.{key}" if path else key


# The process.

_COOKIE = "mailgw.plugin.v1"
_SERVICE = pb.DESCRIPTOR.services_by_name["Plugin"]

# As many as there are transactions and questions, which the gateway bounds, and as
# many again that send: a health check never waits for one of them to end.
_THREADS = 1 << 20

_OPTIONS = [("grpc.max_receive_message_length", 64 << 20)]  # an envelope with very many recipients


def serve(settings: type[S], make: Callable[[S], Backend]) -> NoReturn:
    """Is all that the main thread of a plugin does. It never returns.

    [backend.NAME.settings] of gateway.toml is decoded into the dataclass settings, strictly.
    Its fields are str, bool, int, float, timedelta ("30s"), a class that is called with a
    string, a dataclass, a list or a dict[str, ...] of these, or X | None. What is wrong is a
    fault that the operator is told, with its place. So is a SettingError of make.

    The functions of the module logging write into the gateway's log, with the attributes session,
    tx, if it is not about a question, and ident, if the client has told one, in the thread that
    deliver or the question was called in. What is printed is logged, too. SIGTERM, SIGINT and
    SIGHUP do nothing: the gateway decides when a plugin ends.

    With MAILGW_ATTACH=PATH in its environment a plugin can be started by hand, under a debugger
    for instance. It logs to its terminal then, and SIGINT and SIGTERM end it. Each gateway that
    attaches has a backend of its own, as in a process of its own.
    """
    if os.environ.get("MAILGW_PLUGIN") == _COOKIE:
        _serve_gateway(_Plugin(settings, make), os.path.join(os.environ["PLUGIN_UNIX_SOCKET_DIR"], "plugin"))
    elif "MAILGW_ATTACH" in os.environ:
        _serve_attached(lambda: _Plugin(settings, make), os.path.abspath(os.environ["MAILGW_ATTACH"]))
    else:
        print(_MANUAL.format(program=json.dumps(os.path.abspath(sys.argv[0]))), end="", file=sys.stderr)
        sys.exit(os.EX_USAGE)
    sys.stdout.flush()
    os._exit(0)  # a thread of the backend must not keep the process


def _serve_gateway(plugin: _Plugin, path: str) -> None:
    """Serves the gateway that has started the process."""
    _obey_gateway()
    server = _start(plugin, path)
    print(f"1|1|unix|{path}|grpc", flush=True)
    plugin.stopping.wait()
    server.stop(grace=1).wait()  # the gateway has drained it
    plugin.close(patience=0.5)


def _start(plugin: _Plugin, path: str) -> grpc.Server:
    server = grpc.server(ThreadPoolExecutor(_THREADS), handlers=plugin.handlers(), options=_OPTIONS)
    umask = os.umask(0o077)  # nobody else may connect
    if not server.add_insecure_port("unix:" + path):
        raise OSError(f"cannot listen on {path}")
    os.umask(umask)
    server.start()
    return server


def _obey_gateway() -> None:
    """Does what a plugin does that the gateway has started."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # One that is caught, unlike one that is ignored, is not ignored by children.
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_follow_lifeline, daemon=True).start()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[attr-defined]
    _log(_Formatter())


def _obey_signals(stopping: threading.Event) -> None:
    """Does what a plugin does that somebody has started by hand."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    _log(_TerminalFormatter("%(asctime)s %(levelname)s %(message)s"))


_MANUAL = """This is a plugin of mailgw, which starts it. Name it in gateway.toml:

    [backend.NAME]
    plugin = {program}

and name the backend in a route of a listener. For a debugger, start it yourself with
MAILGW_ATTACH=PATH in its environment, and name the socket: plugin = "unix:PATH".
"""

_WAITING = """The plugin waits for the gateway. Name it in gateway.toml:

    [backend.NAME]
    plugin = {address}

"""


def _follow_lifeline() -> None:
    """Ends the plugin when the gateway has ended without stopping it."""
    lifeline = os.environ.get("MAILGW_LIFELINE", "")
    if lifeline.isdecimal():
        os.set_inheritable(int(lifeline), False)
        while os.read(int(lifeline), 1):
            pass
        os._exit(1)


# A plugin that was started by hand. To the gateway a connection is what a process is otherwise:
# it has one Configure and a backend of its own. grpcio does not tell connections apart, so each
# of them gets a server of its own, behind a socket that nobody else can reach.


def _serve_attached(make: Callable[[], _Plugin], path: str) -> None:
    """Serves the gateways that attach, until SIGINT or SIGTERM."""
    stopping = threading.Event()
    _obey_signals(stopping)
    listener = _listen_attached(path)
    print(_WAITING.format(address=json.dumps("unix:" + path)), end="", file=sys.stderr, flush=True)
    serving: dict[socket.socket, threading.Thread] = {}

    def serve_connection(connection: socket.socket) -> None:
        try:
            _serve_connection(make(), connection)
        finally:
            del serving[connection]

    def accept() -> None:
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            serving[connection] = threading.Thread(target=serve_connection, args=(connection,), daemon=True)
            serving[connection].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    while not stopping.wait(0.2):
        pass  # a signal that interrupts another thread is heeded when this one looks
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)  # a second one does not wait for the backend
    os.unlink(path)
    _shut(listener)
    accepting.join()
    for connection, thread in list(serving.items()):
        _shut(connection)
        thread.join()


def _listen_attached(path: str) -> socket.socket:
    """Makes the socket in the place of one where nobody listens any more."""
    listener = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o077)  # nobody else may connect
    try:
        try:
            listener.bind(path)
        except OSError as e:
            if e.errno != errno.EADDRINUSE or not _is_left(path):
                raise
            os.unlink(path)
            listener.bind(path)
        listener.listen()
    except OSError as e:
        hint = ": a plugin that was started before listens there" if e.errno == errno.EADDRINUSE else ""
        print(f"listen on {path}: {e.strerror}{hint}", file=sys.stderr)
        sys.exit(os.EX_OSERR)
    finally:
        os.umask(umask)
    return listener


def _is_left(path: str) -> bool:
    """Tells whether nobody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect_ex(path) == errno.ECONNREFUSED


def _serve_connection(plugin: _Plugin, connection: socket.socket) -> None:
    """Serves one connection to its end."""
    with connection, socket.socket(socket.AF_UNIX) as inner:
        with tempfile.TemporaryDirectory(prefix="mailgw-") as directory:
            server = _start(plugin, directory + "/plugin")
            inner.connect(directory + "/plugin")
        answers = threading.Thread(target=_pipe, args=(inner, connection), daemon=True)
        answers.start()
        _pipe(connection, inner)
        answers.join()
    server.stop(grace=None).wait()
    plugin.close()


def _pipe(source: socket.socket, to: socket.socket) -> None:
    """Copies until one side ends, and ends the other one then."""
    try:
        while octets := source.recv(64 << 10):
            to.sendall(octets)
    except OSError:
        pass
    _shut(source)
    _shut(to)


def _shut(s: socket.socket) -> None:
    try:
        s.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended


# The methods that questions are put to, and their arguments after the session.
_QUESTIONS: dict[int, tuple[str, Callable[[pb.Question], list[Any]]]] = {
    pb.Question.CONNECTION: ("check_connection", lambda q: []),
    pb.Question.HELO: ("check_helo", lambda q: []),
    pb.Question.SENDER: ("check_sender", lambda q: [_from_wire(Envelope, q.envelope)]),
    pb.Question.RECIPIENT: (
        "check_recipient",
        lambda q: [_from_wire(Envelope, q.envelope), _from_wire(Recipient, q.recipient)],
    ),
    pb.Question.AUTH: ("authenticate", lambda q: [_from_wire(Credentials, q.credentials)]),
    pb.Question.SCRAM: ("scram_verifier", lambda q: [_text(q.text)]),
    pb.Question.VRFY: ("verify", lambda q: [_text(q.text)]),
    pb.Question.EXPN: ("expand", lambda q: [_text(q.text)]),
}


class _Plugin:
    """The plugin's end of the border."""

    def __init__(self, settings: type[Any], make: Callable[[Any], Backend]) -> None:
        self._settings, self._make = settings, make
        self._backend: Any = None
        self._configured = threading.Lock()  # for ever, once Configure has come
        self._idle = threading.Condition()
        self._calls = 0  # transactions and questions under way
        self.stopping = threading.Event()

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        def unary(method: Any, request: Any) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(method, request.FromString, _serialize)

        plain = grpc.unary_unary_rpc_method_handler  # of messages so small that octets will do
        services = {
            _SERVICE.full_name: {
                "Configure": unary(self.configure, pb.ConfigureRequest),
                "Ask": unary(self.ask, pb.Question),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, pb.WatchRequest.FromString, _serialize),
                "Deliver": grpc.stream_stream_rpc_method_handler(self.deliver, pb.ToPlugin.FromString, _serialize),
            },
            "grpc.health.v1.Health": {"Check": plain(self.check)},
            "plugin.GRPCController": {"Shutdown": plain(self.shutdown)},
        }
        return [grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()]

    def configure(self, request: pb.ConfigureRequest, call: grpc.ServicerContext) -> pb.ConfigureResponse:
        if not self._configured.acquire(blocking=False):
            call.abort(grpc.StatusCode.FAILED_PRECONDITION, "the plugin is configured already")
        logging.getLogger().setLevel(_LEVELS.get(request.log_level, logging.INFO))
        decoder = _Decoder()
        try:
            settings = decoder.structure("", json.loads(request.settings_json), self._settings)
            if not decoder.faults:
                backend = self._make(settings)
                if not hasattr(backend, "deliver"):
                    raise TypeError(f"{backend!r:.100} is no backend: it has no method deliver")
                self._backend = backend
                return _announcement(backend)
        except BaseException as e:  # sys.exit would end this thread alone
            decoder.faults += _setting_errors(e)
            if not decoder.faults:
                logging.exception("configure")
                return pb.ConfigureResponse(error=_describe(e))
        return pb.ConfigureResponse(faults=[pb.Fault(key=f.key, text=f.text) for f in decoder.faults])

    def watch(self, _: pb.WatchRequest, call: grpc.ServicerContext) -> Iterator[pb.Capabilities]:
        if not hasattr(self._backend, "watch_capabilities"):
            call.abort(grpc.StatusCode.UNIMPLEMENTED, "the capabilities do not change")
        yield from map(_capabilities, self._backend.watch_capabilities())

    def deliver(self, messages: Iterator[pb.ToPlugin], call: grpc.ServicerContext) -> Iterator[pb.ToGateway]:
        if self._backend is None:
            call.abort(grpc.StatusCode.FAILED_PRECONDITION, "the plugin is not configured")
        first = next(messages, None)
        if first is None or not first.HasField("transaction"):
            call.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first message has no transaction")
        tx = DataContext(first, messages, call)
        threading.Thread(target=self._run, args=(tx, call), daemon=True).start()
        yield from tx._outbox

    def _run(self, tx: DataContext, call: grpc.ServicerContext) -> None:
        with self._under_way():
            self._run_to_end(tx, call)

    def _run_to_end(self, tx: DataContext, call: grpc.ServicerContext) -> None:
        _ids.set(_ids_of(tx.session, tx.id))
        _call.set(call)
        try:
            result = self._deliver(tx)
        except BaseException as e:
            if not isinstance(e, MessageLost):
                logging.exception("deliver")
            result = pb.Returned(failure=_describe(e))
        tx._return(result)
        tx._outbox.wait()  # for what was started

    def _deliver(self, tx: DataContext) -> pb.Returned:
        try:
            status = self._backend.deliver(tx)
        except StatusError as e:
            status = e.status
        else:
            if status is None:
                return pb.Returned(edits=tx._edits)
        if isinstance(status, Status):
            return pb.Returned(status=_status(status))
        raise TypeError(f"deliver returned {status!r:.100}, want None or a Status")

    def ask(self, question: pb.Question, call: grpc.ServicerContext) -> pb.Answer:
        method, arguments = _QUESTIONS.get(question.topic, ("", lambda q: []))
        ask = getattr(self._backend, method, None) if method else None
        if ask is None:
            call.abort(grpc.StatusCode.UNIMPLEMENTED, f"the plugin cannot be asked about {question.topic}")
        session = _from_wire(Session, question.session)
        _ids.set(_ids_of(session, ""))
        _call.set(call)
        try:
            with self._under_way():
                return _answer(question.topic, ask(session, *arguments(question)))
        except StatusError as e:
            return pb.Answer(status=_status(e.status))
        except BaseException as e:
            logging.exception(method)
            return pb.Answer(failure=_describe(e))

    def check(self, request: bytes, call: grpc.ServicerContext) -> bytes:
        """Answers HealthCheckRequest{service = 1} with HealthCheckResponse{status = 1}: SERVING."""
        if request not in (b"", b"\x0a\x06plugin"):
            call.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return b"\x08\x01"

    def shutdown(self, _: bytes, __: grpc.ServicerContext) -> bytes:
        self.stopping.set()
        return b""

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        with self._idle:
            self._calls += 1
        try:
            yield
        finally:
            with self._idle:
                self._calls -= 1
                self._idle.notify_all()

    def close(self, patience: float | None = None) -> None:
        """Closes the backend once nothing is under way, or patience is at its end."""
        with self._idle:
            self._idle.wait_for(lambda: not self._calls, patience)
        if hasattr(self._backend, "close"):
            try:
                self._backend.close()
            except Exception:
                logging.exception("close")


# What crosses the border.


def _serialize(message: Any) -> Any:
    return message.SerializeToString()


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _strings(what: str, values: Iterable[str]) -> list[str]:
    """Makes a list of strings. A string alone, which is one of its letters in Python, is a mistake."""
    strings = None if isinstance(values, str) else list(values)
    if strings is None or not all(isinstance(s, str) for s in strings):
        raise TypeError(f"{what}: want a list of strings, found {values!r:.100}")
    return strings


def _clean(text: str) -> str:
    """Makes text that protobuf takes for a string. The gateway cuts it to 8 KiB."""
    return text.encode("utf-8", "replace").decode()[: 8 << 10]


def _describe(e: BaseException) -> str:
    """Says what went wrong, for the gateway's log; clients never see it."""
    try:
        text = str(e)
    except Exception:
        text = "it cannot say what is wrong"
    return _clean(f"{type(e).__name__}: {text}")


def _status(s: Status) -> pb.Status:
    if not (isinstance(s, Status) and isinstance(s.code, int) and 200 <= s.code <= 599):
        raise ValueError(f"{s!r:.100} is no answer, want a Status with a code from 200 to 599")
    return pb.Status(code=s.code, enhanced=_clean(s.enhanced), text=_clean(s.text))


def _announcement(backend: Any) -> pb.ConfigureResponse:
    """Tells what a backend can do."""
    answer = pb.ConfigureResponse(
        answers=[topic for topic, (method, _) in _QUESTIONS.items() if hasattr(backend, method)],
        capabilities=_capabilities(getattr(backend, "capabilities", Capabilities())),
        watch=hasattr(backend, "watch_capabilities"),
        effect_free=getattr(backend, "effect_free", False),
        needs=map(_clean, _strings("needs", getattr(backend, "needs", []))),
        diverts_to=map(_clean, _strings("diverts_to", getattr(backend, "diverts_to", []))),
    )
    may = getattr(backend, "may_edit", ~Edits(0))
    answer.may_edit.header = Edits.HEADER in may
    answer.may_edit.message = Edits.MESSAGE in may
    answer.may_edit.envelope = Edits.ENVELOPE in may
    return answer


def _capabilities(can: Capabilities) -> pb.Capabilities:
    return pb.Capabilities(**dataclasses.asdict(can))


def _answer(topic: int, answer: Any) -> pb.Answer:
    match answer:
        case None | "":
            return pb.Answer()
        case Status() if topic in (pb.Question.AUTH, pb.Question.SCRAM, pb.Question.EXPN):
            return pb.Answer(status=_status(answer))
        case Status():
            return pb.Answer(opinion=pb.Opinion(status=_status(answer)))
        case Opinion(status, seconds, key):
            opinion = pb.Opinion(status=_status(status), valid=int(seconds * 1000), key=_octets(key))
            return pb.Answer(opinion=opinion)
        case str() if topic == pb.Question.AUTH:
            return pb.Answer(user=_octets(answer))
        case SCRAMVerifier():
            return pb.Answer(scram=pb.SCRAMVerifier(**{**dataclasses.asdict(answer), "user": _octets(answer.user)}))
        case list() | tuple():
            return pb.Answer(members=pb.Members(members=map(_octets, answer)))
    raise TypeError(f"{_QUESTIONS[topic][0]} returned {type(answer).__name__}, which is no answer")


_hints = functools.cache(typing.get_type_hints)


def _from_wire(into: type[T], message: Any) -> T:
    """Makes one of the classes above of a message that has fields of the same names."""
    values = {}
    for name, hint in _hints(into).items():
        if name in message.DESCRIPTOR.fields_by_name:
            optional = type(None) in typing.get_args(hint)
            if not optional or message.HasField(name):
                values[name] = _value(typing.get_args(hint)[0] if optional else hint, getattr(message, name))
    return into(**values)


def _value(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint):
        return _from_wire(hint, value)
    if hint is Params:
        return Params(map(_text, value))
    if typing.get_origin(hint) is list:
        return [_value(typing.get_args(hint)[0], v) for v in value]
    return _text(value) if hint is str and isinstance(value, bytes) else value


# The log.

_ids: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("ids", default={})
_call: contextvars.ContextVar[grpc.ServicerContext | None] = contextvars.ContextVar("call", default=None)

_LEVELS = {"DEBUG": logging.DEBUG, "INFO": logging.INFO, "WARN": logging.WARNING, "ERROR": logging.ERROR}
_STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "level"}
_LONGEST_STACK = 4 << 10  # octets; a line of the log has 8 KiB


def _ids_of(session: Session, tx: str) -> dict[str, str]:
    ids = {"session": session.id, "tx": tx, "ident": session.xforward.ident if session.xforward else ""}
    return {key: value for key, value in ids.items() if value}


def _attributes(record: logging.LogRecord) -> dict[str, Any]:
    return _ids.get() | {key: value for key, value in vars(record).items() if key not in _STANDARD}


class _TerminalFormatter(logging.Formatter):
    """Writes records as people read them, with key=value for each attribute."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        words = [super().formatMessage(record)]
        for key, value in _attributes(record).items():
            plain = re.fullmatch(r"[!#-<>-~]+", str(value))
            words.append(f"{key}={value if plain else json.dumps(str(value))}")
        return " ".join(words)


class _Formatter(logging.Formatter):
    """Writes records as the gateway reads them: one line of JSON each."""

    def format(self, record: logging.LogRecord) -> str:
        level = max((n, name) for name, n in _LEVELS.items() if n <= max(record.levelno, logging.DEBUG))[1]
        line = {"level": level, "msg": record.getMessage(), **_attributes(record)}
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)[-_LONGEST_STACK:]
        return json.dumps(line, default=str)


def _log(formatter: logging.Formatter) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    threading.excepthook = lambda e: logging.error("thread", exc_info=(e.exc_type, e.exc_value, e.exc_traceback))  # type: ignore[arg-type]
