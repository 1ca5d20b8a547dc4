// Package dnstest answers questions of the DNS for tests.
package dnstest

import (
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// A Zone is all that the DNS has, by name in lower case, without a dot at the
// end. Other names do not exist.
type Zone struct {
	TXT   map[string][]string
	A     map[string][4]byte
	Fails map[string]bool // SERVFAIL

	// Asked gets the name of each question, which is not answered then.
	Asked chan<- string
}

// Serve answers questions from z over UDP and TCP until the test ends, and
// returns its HOST:PORT.
func Serve(t *testing.T, z Zone) string {
	t.Helper()
	udp, tcp := listenTwice(t)
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	go func() {
		for query := make([]byte, 1500); ; {
			n, from, err := udp.ReadFrom(query)
			if err != nil {
				return
			}
			if answer := z.answer(query[:n], 512); answer != nil {
				udp.WriteTo(answer, from)
			}
		}
	}()
	go func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			go z.serveTCP(conn)
		}
	}()
	return udp.LocalAddr().String()
}

// listenTwice listens on UDP and TCP at the same port, which other programs may
// have taken for one of them.
func listenTwice(t *testing.T) (net.PacketConn, net.Listener) {
	t.Helper()
	var err error
	for range 100 {
		var tcp net.Listener
		var udp net.PacketConn
		if tcp, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			break
		}
		if udp, err = net.ListenPacket("udp", tcp.Addr().String()); err == nil {
			return udp, tcp
		}
		tcp.Close()
	}
	t.Fatal(err)
	return nil, nil
}

// serveTCP answers one question: RFC 1035, section 4.2.2.
func (z Zone) serveTCP(conn net.Conn) {
	defer conn.Close()
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return
	}
	query := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, query); err != nil {
		return
	}
	if answer := z.answer(query, 1<<16-1); answer != nil {
		conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
	}
}

// answer returns the answer to a query, truncated if it has more than size
// octets, or nil if there is none.
func (z Zone) answer(query []byte, size int) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
		return nil
	}
	q := m.Questions[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if z.Asked != nil {
		z.Asked <- name
		return nil
	}
	m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
	add := func(body dnsmessage.ResourceBody) {
		m.Answers = append(m.Answers, dnsmessage.Resource{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, Body: body})
	}
	texts, hasText := z.TXT[name]
	address, hasAddress := z.A[name]
	switch {
	case z.Fails[name]:
		m.RCode = dnsmessage.RCodeServerFailure
	case !hasText && !hasAddress:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeTXT:
		for _, text := range texts {
			add(&dnsmessage.TXTResource{TXT: chunks(text)})
		}
	case q.Type == dnsmessage.TypeA && hasAddress:
		add(&dnsmessage.AResource{A: address})
	}
	answer, err := m.Pack()
	if err == nil && len(answer) > size {
		m.Truncated, m.Answers = true, nil
		answer, err = m.Pack()
	}
	if err != nil {
		return nil
	}
	return answer
}

// chunks parts a text into strings of 255 octets, which are all that one can
// have.
func chunks(text string) (parts []string) {
	for len(text) > 255 {
		parts, text = append(parts, text[:255]), text[255:]
	}
	return append(parts, text)
}
