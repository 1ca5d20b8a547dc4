#!/usr/bin/python3
"""A plugin that does what the address of the first recipient says, for tests of mailgw.py."""

import contextvars
import dataclasses
import hashlib
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import mailgw
import plugin_pb2 as pb


@dataclass
class Rule:
    to: str
    weight: float = 1


@dataclass
class Settings:
    path: Path = Path("default")
    wait: timedelta = timedelta(minutes=1)
    count: int = 0
    rules: list[Rule] = field(default_factory=list)
    names: dict[str, bool] = field(default_factory=dict)
    note: str | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ExceptionGroup("", [mailgw.SettingError("count", "is negative")])


def to_wire(message: Any, value: Any) -> Any:
    """Does the reverse of what mailgw does, so that the test sees whether anything is lost."""
    for f in dataclasses.fields(value):
        v = getattr(value, f.name)
        if v is None:
            continue
        if dataclasses.is_dataclass(v):
            getattr(message, f.name).SetInParent()
            to_wire(getattr(message, f.name), v)
        elif isinstance(v, mailgw.Params):
            getattr(message, f.name).extend(octets(x) for x in v)
        elif isinstance(v, list):
            for x in v:
                to_wire(getattr(message, f.name).add(), x)
        elif isinstance(getattr(message, f.name), bytes):
            setattr(message, f.name, octets(v))
        else:
            setattr(message, f.name, v)
    return message


def octets(v: str | bytes) -> bytes:
    return v if isinstance(v, bytes) else v.encode("utf-8", "surrogateescape")


class Contract:
    capabilities = mailgw.Capabilities(dsn=True, size=1000, binary_mime=False)
    effect_free = True
    needs = ["writes /var/mail", "\udcff"]
    diverts_to = ("quarantine", "audit")

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.gate = threading.Event()
        for name in {"needs", "diverts_to"} & settings.names.keys():
            setattr(self, name, "text")
        if settings.note == "exit":
            sys.exit("giving up")
        if settings.note == "fail":
            raise OSError("no such directory")

    def close(self) -> None:
        if self.settings.note:
            Path(self.settings.note).write_text("closed")

    def watch_capabilities(self) -> Iterator[mailgw.Capabilities]:
        yield self.capabilities
        self.gate.wait()
        yield mailgw.Capabilities(relays=True)

    def deliver(self, tx: mailgw.DataContext) -> mailgw.Status | None:
        return getattr(self, tx.envelope.recipients[0].address.replace(" ", "_"))(tx)

    # What the recipients say.

    def whole(self, tx: mailgw.DataContext) -> None:
        transaction = to_wire(pb.Transaction(id=tx.id, size=tx.size), tx.envelope)
        transaction.session.SetInParent()
        to_wire(transaction.session, tx.session)
        tx.replace_message(transaction.SerializeToString())

    def answers(self, tx: mailgw.DataContext) -> None:
        for i, r in enumerate(tx.envelope.recipients):
            match r.address:
                case "delivered":
                    tx.set_status(i, mailgw.DELIVERED)
                case "nobody":
                    tx.set_status(i, mailgw.NO_SUCH_USER)
                case "surrogate":
                    tx.set_status(i, mailgw.Status(450, "4.2.0", "na\udcefve"))
        tx.set_smtp_response(mailgw.Status(250, "2.0.0", "taken"))

    def settings_are(self, tx: mailgw.DataContext) -> mailgw.Status:
        return mailgw.Status(250, "2.0.0", repr(self.settings))

    def refuses(self, tx: mailgw.DataContext) -> mailgw.Status:
        return mailgw.NO_SUCH_USER

    def raises(self, tx: mailgw.DataContext) -> None:
        raise mailgw.StatusError(mailgw.NO_SUCH_USER)

    def fails(self, tx: mailgw.DataContext) -> None:
        raise OSError("disk on fire at /secret")

    def exits(self, tx: mailgw.DataContext) -> None:
        sys.exit("a bug")

    def nonsense(self, tx: mailgw.DataContext) -> Any:
        return 250

    def no_code(self, tx: mailgw.DataContext) -> None:
        tx.set_status(0, mailgw.Status(0))

    def no_status(self, tx: mailgw.DataContext) -> None:
        tx.set_status(0, "250 ok")  # type: ignore[arg-type]

    def raises_nonsense(self, tx: mailgw.DataContext) -> None:
        raise mailgw.StatusError(mailgw.Status(0))

    def raises_none(self, tx: mailgw.DataContext) -> None:
        raise mailgw.StatusError(None)  # type: ignore[arg-type]

    def unspeakable(self, tx: mailgw.DataContext) -> None:
        raise Unspeakable

    def no_recipient(self, tx: mailgw.DataContext) -> None:
        tx.set_status(len(tx.envelope.recipients), mailgw.DELIVERED)

    def twice(self, tx: mailgw.DataContext) -> None:
        tx.set_status(0, mailgw.DELIVERED)
        tx.set_status(0, mailgw.NO_SUCH_USER)
        tx.set_all(mailgw.NO_SUCH_USER)

    def edits(self, tx: mailgw.DataContext) -> None:
        tx.add_field(0, "X-First: one")
        tx.replace_field(2, "Subject: gr\udcfc\udcdfe,\r\n folded")
        tx.remove_field(3)
        tx.set_sender("new@example.org")
        tx.set_sender_params(["RET=FULL", "XVERP"])
        tx.set_sender_params(iter(["RET=HDRS", "ENVID=new"]))
        tx.redirect(1, "a@example.org", "b@example.org")
        tx.add_recipient("archive@example.org", ["NOTIFY=NEVER"])
        tx.divert(0, "quarantine")

    def bad_field(self, tx: mailgw.DataContext) -> None:
        tx.add_field(0, "X: y\r\nfrom@example.org")

    def both(self, tx: mailgw.DataContext) -> None:
        tx.replace_message(b"new")
        tx.add_field(0, "X: y")

    def bad_address(self, tx: mailgw.DataContext) -> None:
        tx.set_sender("no address")

    def no_params(self, tx: mailgw.DataContext) -> None:
        tx.set_sender_params([])

    def param_of_message(self, tx: mailgw.DataContext) -> None:
        tx.set_sender_params(["REQUIRETLS"])

    def letters(self, tx: mailgw.DataContext) -> None:
        tx.set_sender_params("RET=HDRS")

    def letters_added(self, tx: mailgw.DataContext) -> None:
        tx.add_recipient("a@example.org", "NOTIFY=NEVER")

    def empties(self, tx: mailgw.DataContext) -> None:
        tx.replace_message(b"")

    def replaces(self, tx: mailgw.DataContext) -> None:
        """Replaces the message while it is read."""
        tx.replace_message(b"broken")
        tx.replace_message(Prefixed(b"new ", tx.body))

    def breaks_off(self, tx: mailgw.DataContext) -> None:
        try:
            tx.replace_message(Broken())
        except OSError:
            tx.replace_message(b"second")

    def reads(self, tx: mailgw.DataContext) -> mailgw.Status:
        return digest(tx)

    def header(self, tx: mailgw.DataContext) -> mailgw.Status:
        fields, rest = mailgw.read_header(tx.body)
        return mailgw.Status(250, "2.0.0", repr((fields, rest, tx.body.read())))

    def wrote(self, tx: mailgw.DataContext) -> None:
        tx.wrote([b"A: b\r\n", b"C: d\r\n"], hashlib.sha256(b"\r\nbody").digest())
        tx.set_all(mailgw.DELIVERED)

    def late(self, tx: mailgw.DataContext) -> None:
        for i, r in enumerate(tx.envelope.recipients):
            if r.address != "undecided":
                tx.start_delivery(i)
            if r.address == "reads":
                threading.Thread(target=lambda i=i: tx.set_status(i, digest(tx))).start()
            elif r.address == "bug":
                threading.Thread(target=lambda: 1 / 0).start()
            elif r.address == "done":
                tx.set_status(i, mailgw.DELIVERED)

    def deadline(self, tx: mailgw.DataContext) -> mailgw.Status:
        left = {tx.time_remaining(), mailgw.time_remaining()} - {None}
        return mailgw.Status(250, "2.0.0", str({round(seconds / 60) for seconds in left}))

    def waits(self, tx: mailgw.DataContext) -> mailgw.Status:
        tx.set_status(0, mailgw.DELIVERED)
        self.gate.wait()
        return mailgw.DELIVERED

    def opens(self, tx: mailgw.DataContext) -> mailgw.Status:
        self.gate.set()
        return mailgw.DELIVERED

    def dies(self, tx: mailgw.DataContext) -> None:
        tx.set_status(0, mailgw.DELIVERED)
        os._exit(3)

    def logs(self, tx: mailgw.DataContext) -> mailgw.Status:
        logging.info("stored", extra={"path": Path("/var/mail"), "event": "forged"})
        logging.debug("%d octets", 5)
        logging.critical("on fire")
        threading.Thread(target=contextvars.copy_context().run, args=(logging.info, "from a thread")).start()
        print("to stdout")
        print("to stderr", file=sys.stderr)
        return mailgw.DELIVERED

    # Questions.

    def check_connection(self, session: mailgw.Session) -> mailgw.Status | None:
        match session.helo:
            case "fails":
                raise OSError("directory on fire")
            case "refuses":
                raise mailgw.StatusError(mailgw.NO_SUCH_USER)
            case "no opinion":
                return None
            case "deadline":
                return said(str(round((mailgw.time_remaining() or 0) / 60)))
        return said("connection " + session.id)

    def check_helo(self, session: mailgw.Session) -> mailgw.Status:
        return said("helo " + session.helo)

    def check_sender(self, session: mailgw.Session, envelope: mailgw.Envelope) -> mailgw.Status:
        return said(f"sender {envelope.sender}")

    def check_recipient(self, session: mailgw.Session, envelope: mailgw.Envelope, to: mailgw.Recipient) -> mailgw.Opinion:
        return mailgw.Opinion(said(f"{to.address} {to.params.lookup('notify')} from {envelope.sender}"), 60, "@example.org")

    def authenticate(self, session: mailgw.Session, c: mailgw.Credentials) -> str:
        if session.helo == "fails":
            raise ValueError(repr(c))
        return f"{c.mechanism} {c.identity} {c.user} {c.password}"

    def scram_verifier(self, session: mailgw.Session, user: str) -> mailgw.SCRAMVerifier:
        return mailgw.SCRAMVerifier(user.encode(), 4096, b"k" * 32, b"k" * 32, "u" + user)

    def verify(self, session: mailgw.Session, text: str) -> mailgw.Status:
        return said("user " + text)

    def expand(self, session: mailgw.Session, text: str) -> list[str] | None:
        match session.helo:
            case "no opinion":
                return None
            case "letters":
                return text  # type: ignore[return-value]
        return [text, "gr\udcfc\udcdfe"]


def said(text: str) -> mailgw.Status:
    return mailgw.Status(250, "2.0.0", text)


def digest(tx: mailgw.DataContext) -> mailgw.Status:
    n, h = 0, hashlib.sha256()
    while chunk := tx.body.read(10_000):
        n, _ = n + len(chunk), h.update(chunk)
    return said(f"{n} {h.hexdigest()}")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("a bug in a bug")


class Prefixed(io.RawIOBase):
    def __init__(self, prefix: bytes, rest: io.BufferedReader) -> None:
        self.prefix, self.rest = prefix, rest

    def read(self, n: int = -1) -> bytes:
        first, self.prefix = self.prefix, b""
        return first or self.rest.read(n)


class Broken(io.RawIOBase):
    chunks = 3

    def read(self, n: int = -1) -> bytes:
        self.chunks -= 1
        if not self.chunks:
            raise OSError("broken")
        return b"x" * n


if __name__ == "__main__":
    mailgw.serve(Settings, lambda s: Contract(s) if s.note != "nothing" else None)
