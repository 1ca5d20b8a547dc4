// Package webhook is a backend that posts each message to an HTTP server, the
// hook, and does with the recipients what it answers:
//
//	[backend.hook.settings]
//	url = "https://hook.example.org/mail"
//	secret_file = "/etc/mailgw/hook.secret"
//
// # The request
//
// It is a POST of multipart/form-data, as browsers send forms with a file, so
// that every web framework can take it apart. The form has two parts: the
// field "envelope", which is JSON, and the file "message", which is the message
// octet for octet.
//
//	POST /mail HTTP/1.1
//	Host: hook.example.org
//	Content-Type: multipart/form-data; boundary=BOUNDARY
//	Content-Length: 1222
//	Idempotency-Key: 6fae329d...
//	Mailgw-Signature: t=1790000000,v1=54dc94d2...
//
//	--BOUNDARY
//	Content-Disposition: form-data; name="envelope"
//	Content-Type: application/json
//
//	{
//	  "transaction": "06gztyg6qak7z5b6",
//	  "idempotency_key": "6fae329d...",
//	  "ident": "4c2Xw31zVKzF2Bp",
//	  "session": {
//	    "id": "06gztyg6q151rdby",
//	    "listener": "lmtp",
//	    "peer": "unix:uid=104",
//	    "user": "",
//	    "mechanism": "",
//	    "tls": {
//	      "version": "TLS 1.3",
//	      "cipher": "TLS_AES_128_GCM_SHA256",
//	      "server_name": "mx.example.org",
//	      "client_certificate": "",
//	      "client_name": ""
//	    }
//	  },
//	  "client": {
//	    "address": "192.0.2.1",
//	    "name": "mail.example.net",
//	    "helo": "mail.example.net",
//	    "protocol": "ESMTP"
//	  },
//	  "sender": {"address": "bob@example.net", "params": ["BODY=8BITMIME"]},
//	  "recipients": [
//	    {"index": 0, "address": "ann@example.org", "params": []},
//	    {"index": 1, "address": "carol@example.org", "params": ["NOTIFY=NEVER"]}
//	  ],
//	  "message": {"size": 54, "sha256": "81a77bdd..."}
//	}
//	--BOUNDARY
//	Content-Disposition: form-data; name="message"; filename="message.eml"
//	Content-Type: message/rfc822
//
//	From: bob@example.net
//	Subject: hello
//
//	Hello, Ann.
//
//	--BOUNDARY--
//
// The JSON comes without the white space. Every key is always there: what is
// not known is "", and "tls" is null in the clear. There may be more keys in
// later versions. The client is the one that a trusted proxy told of, by
// XFORWARD, XCLIENT or PROXY, else the peer; "ident" is the proxy's name of the
// message, such as Postfix's queue id. The sender of bounces is "". Octets that
// are no UTF-8 come as U+FFFD.
//
// # The answer
//
// 204 (No Content) says that there is no objection: all recipients go on to the
// next backend of their route, and get 451 if there is none. 200 (OK) comes with
// verdicts in JSON. All keys may be left out:
//
//	{
//	  "recipients": [
//	    {"index": 0, "code": 550, "enhanced": "5.1.1", "text": "no such user"},
//	    {"index": 1, "divert": "quarantine"},
//	    {"index": 2, "continue": true}
//	  ],
//	  "default": {"code": 250, "text": "stored"},
//	  "remove_headers": ["X-Spam"],
//	  "add_headers": ["X-Spam: yes"]
//	}
//
// A verdict is one of three. "code", with "enhanced" and "text" if wanted, is the
// answer of the recipient: 250 says that the hook has taken responsibility for
// the message, 4yz that it is to come again, 5yz refuses it. "divert" sends the
// recipient to a route of [named_routes] in gateway.toml. With "continue" it goes
// on to the next backend. Recipients that are not listed have the default
// verdict, and go on if there is none: so {} is the same as 204.
//
// For the recipients that go on or are diverted, the header fields that are
// named in "remove_headers" are removed, and those of "add_headers" are put
// before the header, in their order.
//
// An answer that is not like this gets every recipient a 451: one with an
// unknown or doubled key, with a recipient twice or one that there is not, with
// no JSON in a 200, or of more than 1 MiB. So does a 250 that comes before the
// hook has been sent the whole message.
//
// # When the hook fails
//
// With any other HTTP status, too, the recipients get 451: the hook refuses mail
// by verdicts only, never by an HTTP status. The cause is in the log. on_failure of
// the backend, in gateway.toml, can let them go on instead.
//
// Nothing is posted twice for one transaction: that is for the client, who has
// the message. When it sends it again, because it has not heard our answer or
// that was 4yz, the Idempotency-Key is the same: it is a hash of ident, sender,
// recipients and message. A hook that has stored a message under that key says
// 250 again, and does not store it twice; a 4yz it does not repeat, or the message
// would never get through. Two messages have the same key if they are equal to
// the last octet, Date and Message-ID too, and have the same ident, or none.
//
// # The signature
//
// With a secret, Mailgw-Signature has the time, in seconds since 1970, and the
// HMAC-SHA256 of three things joined by dots: that time, the envelope as it
// came, and the SHA-256 of the message in hexadecimal digits. This is how a
// hook in Python sees that a request is genuine, and not an old one:
//
//	import hashlib, hmac, time
//
//	def verify(secret, signature, envelope, message, tolerance=300):
//	    fields = dict(field.split("=", 1) for field in signature.split(","))
//	    digest = hashlib.sha256(message).hexdigest()
//	    signed = b".".join([fields["t"].encode(), envelope, digest.encode()])
//	    expected = hmac.new(secret, signed, hashlib.sha256).hexdigest()
//	    return (hmac.compare_digest(expected, fields["v1"])
//	            and abs(time.time() - int(fields["t"])) <= tolerance)
//
// Nothing else is signed: of the key, take the idempotency_key of the envelope, not
// the header. All but tolerance are bytes, but for signature. With Flask, envelope is
// request.form["envelope"].encode() and message request.files["message"].read().
// The secret is what is in the file, without the line end at its end. The
// example is a whole hook in Go.
//
// # Where it connects to
//
// It follows a redirect only if redirects says so, 307 and 308 only, and never
// from https to http. The token of bearer_file and the certificate are for the
// host and port of url only. If addresses has networks, no address beyond them
// is ever connected to, whatever a name resolves to. If not, the host of url may
// be anywhere, but a redirect to another host or port must lead to a public
// address, so that it does not reach into the network of the gateway. Proxies
// in the environment are not used.
//
// It speaks HTTP/1.1. A message of more than 64 KiB is in a temporary file
// without a name while it is posted.
package webhook
