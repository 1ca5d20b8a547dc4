#!/usr/bin/python3
"""Example-plugin is a plugin of mailgw: it refuses recipients who have left, and marks the
messages of the others. Change it into what you need.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import mailgw


@dataclass
class Settings:
    """[backend.example-plugin.settings] in gateway.toml."""

    left: list[str] = field(default_factory=list)  # addresses of users who have left, in lower case
    mark: str = "X-Example: seen"  # the header field that a message gets


HAS_LEFT = mailgw.Status(550, "5.1.1", "this user has left")


class Plugin:
    # Which edits deliver makes. The gateway refuses others.
    may_edit = mailgw.Edits.HEADER

    def __init__(self, settings: Settings) -> None:
        if ": " not in settings.mark:
            raise mailgw.SettingError("mark", 'want a header field, "Name: value"')
        self.settings = settings

    def check_recipient(
        self, session: mailgw.Session, envelope: mailgw.Envelope, recipient: mailgw.Recipient
    ) -> mailgw.Status | None:
        """Is asked at RCPT, before there is a message. None is no opinion."""
        return HAS_LEFT if recipient.address.lower() in self.settings.left else None

    def deliver(self, tx: mailgw.DataContext) -> None:
        """Is called for each message, for many at the same time. Recipients that it leaves
        without a status go on to the next backend of their route. An exception means that
        they are to be tried again later.
        """
        for i, recipient in enumerate(tx.envelope.recipients):
            if recipient.address.lower() in self.settings.left:
                tx.set_status(i, HAS_LEFT)
        logging.debug("marked", extra={"size": tx.size})  # in the gateway's log, if its level is debug
        tx.add_field(0, self.settings.mark)


if __name__ == "__main__":
    mailgw.serve(Settings, Plugin)
