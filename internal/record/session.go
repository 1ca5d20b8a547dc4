package record

import (
	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/xforward"
)

// What a record has of a session. Read and Write both go by these.

func sessionAttributes(s *backends.Session) []attribute {
	return []attribute{
		{"ID", &s.ID},
		{"LISTENER", &s.Listener},
		{"PROTOCOL", &s.Protocol},
		{"LOCAL", &s.Local},
		{"HELO", &s.HELO},
		{"USER", &s.User},
		{"MECHANISM", &s.Mechanism},
	}
}

func peerAttributes(p *backends.Peer) []attribute {
	return []attribute{
		{"ADDR", &p.Addr},
		{"UID", &p.UID},
		{"GID", &p.GID},
		{"PID", &p.PID},
	}
}

func clientAttributes(c *backends.Client) []attribute {
	return []attribute{
		{"SOURCE", &c.Source},
		{"ADDR", &c.Addr},
		{"LOCAL", &c.Local},
		{"NAME", &c.Name},
		{"REVERSE_NAME", &c.ReverseName},
		{"HELO", &c.HELO},
		{"PROTO", &c.Protocol},
	}
}

func tlsAttributes(t *backends.TLS) []attribute {
	return []attribute{
		{"VERSION", &t.Version},
		{"CIPHER", &t.Cipher},
		{"SERVER_NAME", &t.ServerName},
		{"CLIENT_CERTIFICATE", &t.ClientCertificate},
		{"CLIENT_NAME", &t.ClientName},
	}
}

func xforwardAttributes(x *xforward.Attrs) []attribute {
	return []attribute{
		{"NAME", &x.Name},
		{"ADDR", &x.Addr},
		{"PORT", &x.Port},
		{"PROTO", &x.Proto},
		{"HELO", &x.HELO},
		{"IDENT", &x.Ident},
		{"SOURCE", &x.Source},
		{"FORWARDED", &x.Forwarded},
	}
}
