"""Sends one message with smtplib, as the JSON on standard input says.

It prints which recipients were refused, as JSON; "" stands for all. What else
goes wrong is an exception, which the exit code tells.
"""

import json
import smtplib
import ssl
import sys

job = json.load(sys.stdin)
tls = ssl.create_default_context(cafile=job["ca"])

if job["protocol"] == "SMTP_SSL":
    host, port = job["address"].split(":")
    client = smtplib.SMTP_SSL(host, port, context=tls)
else:
    client = getattr(smtplib, job["protocol"])(job["address"])

with client:
    if job["protocol"] != "SMTP_SSL":
        client._host = job["name"]  # else it looks for the path of the socket
        client.starttls(context=tls)
    try:
        if job["mechanism"]:
            client.ehlo_or_helo_if_needed()
            client.user, client.password = job["user"], job["password"]
            client.auth(job["mechanism"], getattr(client, "auth_" + job["mechanism"].lower()))
        refused = client.sendmail(
            job["sender"],
            job["recipients"],
            job["message"].encode(),
            job["mail_options"] or [],
            job["rcpt_options"] or [],
        )
    except smtplib.SMTPResponseException as error:
        refused = {"": (error.smtp_code, error.smtp_error)}

json.dump({to: f"{code} {text.decode()}" for to, (code, text) in refused.items()}, sys.stdout)
