package relay

import "testing"

func TestURLs(t *testing.T) {
	for _, test := range []struct {
		url  string
		want server
		err  string
	}{
		{"smtp://mx.example.org", server{network: "tcp", address: "mx.example.org:25", host: "mx.example.org"}, ""},
		{"smtp://127.0.0.1:10026", server{network: "tcp", address: "127.0.0.1:10026", host: "127.0.0.1"}, ""},
		{"smtp://[::1]:10026/", server{network: "tcp", address: "[::1]:10026", host: "::1"}, ""},
		{"SMTP://MX.example.org", server{network: "tcp", address: "MX.example.org:25", host: "MX.example.org"}, ""},
		{"smtps://mx.example.org", server{network: "tcp", address: "mx.example.org:465", host: "mx.example.org", tls: implicitTLS}, ""},
		{"smtp+starttls://mx.example.org", server{network: "tcp", address: "mx.example.org:587", host: "mx.example.org", tls: startTLS}, ""},
		{"lmtp://mx.example.org", server{network: "tcp", address: "mx.example.org:24", host: "mx.example.org", lmtp: true}, ""},
		{"lmtp+unix:///run/lmtp.sock", server{network: "unix", address: "/run/lmtp.sock", lmtp: true}, ""},
		{"lmtp+unix:/run/lmtp.sock", server{network: "unix", address: "/run/lmtp.sock", lmtp: true}, ""},
		{"smtp+unix:./var/smtp.sock", server{network: "unix", address: "./var/smtp.sock"}, ""},
		{"smtp+unix:@name", server{network: "unix", address: "@name"}, ""},

		{"", server{}, errScheme.Error()},
		{"127.0.0.1:25", server{}, errScheme.Error()},
		{"mx.example.org:25", server{}, errScheme.Error()},
		{"lmtps://mx.example.org", server{}, errScheme.Error()},
		{"smtp:mx.example.org", server{}, "want smtp://HOST:PORT"},
		{"smtp://", server{}, "want smtp://HOST:PORT"},
		{"smtp://:25", server{}, "want smtp://HOST:PORT"},
		{"smtp://mx.example.org:mail", server{}, `invalid port ":mail" after host`},
		{"smtp://mx.example.org:65536", server{}, "no port: 65536"},
		{"smtp://mx.example.org/path", server{}, "nothing may follow the port"},
		{"smtp://mx.example.org?tls=no", server{}, "nothing may follow the address"},
		{"smtps://user:secret@mx.example.org", server{}, "a user and a password belong in credentials_file"},
		{"lmtp+unix://run/lmtp.sock", server{}, "want lmtp+unix:///PATH, or lmtp+unix:@NAME"},
		{"lmtp+unix:", server{}, "want lmtp+unix:///PATH, or lmtp+unix:@NAME"},
		{"lmtp+unix:@", server{}, "want lmtp+unix:///PATH, or lmtp+unix:@NAME"},
	} {
		got, err := parseURL(test.url)
		if err != nil {
			if err.Error() != test.err {
				t.Errorf("%s: %q, want %q", test.url, err, test.err)
			}
			continue
		}
		if test.want.url = test.url; got != test.want || test.err != "" {
			t.Errorf("%s: got %+v, want %+v, %q", test.url, got, test.want, test.err)
		}
	}
}
