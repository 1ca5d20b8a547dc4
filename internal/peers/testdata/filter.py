"""A milter that does what each message asks for.

Its field X-Do has a JSON list of calls of methods of the milter, which are made
at the end of the message: ["addheader", "X-New", "value"]. "told" adds a field
X-Told with what the milter was told, and ["body", TEXT, N] makes a new body of
N times the text. Recipients whose address begins with "refused" are refused.
"""

import json
import sys

import Milter


class Filter(Milter.Base):
    def connect(self, hostname, family, address):
        self.told = [f"{hostname} {address}"]
        return Milter.CONTINUE

    def hello(self, name):
        self.told.append(f"HELO {name}")
        return Milter.CONTINUE

    def envfrom(self, address, *params):
        self.told.append(f"MAIL {address} {params}")
        self.calls, self.octets = [], 0
        return Milter.CONTINUE

    def envrcpt(self, address, *params):
        self.told.append(f"RCPT {address} {params} {self.getsymval('{rcpt_addr}')}")
        if address.startswith("<refused"):
            self.setreply("550", "5.7.1", "refused by python,", "100%% sure")
            return Milter.REJECT
        return Milter.CONTINUE

    def data(self):
        self.told.append("DATA")
        return Milter.CONTINUE

    def header(self, name, value):
        if name == "X-Do":
            self.calls = json.loads(value)
        return Milter.CONTINUE

    def eoh(self):
        return Milter.CONTINUE

    def body(self, piece):
        self.octets += len(piece)
        return Milter.CONTINUE

    def eom(self):
        macros = [f"{name}={self.getsymval(name)}" for name in ("j", "{daemon_name}", "{mail_addr}")]
        for name, *args in self.calls:
            if name == "told":
                self.addheader("X-Told", "\n ".join(self.told + macros + [f"{self.octets} octets"]))
            elif name == "body":
                self.replacebody(args[0].encode() * args[1])
            elif name in ("ACCEPT", "REJECT", "TEMPFAIL", "DISCARD"):
                return getattr(Milter, name)
            else:
                getattr(self, name)(*args)
        return Milter.CONTINUE


Milter.factory = Filter
Milter.set_flags(
    Milter.ADDHDRS | Milter.CHGBODY | Milter.ADDRCPT | Milter.DELRCPT | Milter.CHGHDRS
    | Milter.QUARANTINE | Milter.CHGFROM | Milter.ADDRCPT_PAR
)
Milter.runmilter("peer", sys.argv[1], 60)
