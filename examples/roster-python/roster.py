#!/usr/bin/python3
"""Roster is a plugin that knows who has a mailbox. It refuses strangers, puts off mail for
those who are away, and leaves the others to the next backend.
"""

from dataclasses import dataclass, field

import mailgw


@dataclass
class Settings:
    users: list[str] = field(default_factory=list)  # addresses in lower case
    away: list[str] = field(default_factory=list)


class Roster:
    may_edit = mailgw.Edits(0)

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def deliver(self, tx: mailgw.DataContext) -> None:
        for i, recipient in enumerate(tx.envelope.recipients):
            address = recipient.address.lower()
            if address in self.settings.away:
                tx.set_status(i, mailgw.Status(450, "4.2.1", "away, try again later"))
            elif address not in self.settings.users:
                tx.set_status(i, mailgw.NO_SUCH_USER)
        # Those without a status go on.


if __name__ == "__main__":
    mailgw.serve(Settings, Roster)
