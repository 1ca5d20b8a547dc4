"""Verifies the DKIM signatures of messages with dkimpy.

The JSON on standard input has the TXT records of the DNS by name, and the
messages in base64. It prints, as JSON, how many signatures of each are good.
"""

import base64
import json
import sys

import dkim

job = json.load(sys.stdin)


def txt(name, timeout=5):
    return job["records"][name.decode().rstrip(".")].encode()


def good(message):
    d = dkim.DKIM(message)
    signatures = [name for name, _ in d.headers if name.lower() == b"dkim-signature"]
    return sum(d.verify(idx=i, dnsfunc=txt) for i in range(len(signatures)))


print(json.dumps([good(base64.b64decode(m)) for m in job["messages"]]))
