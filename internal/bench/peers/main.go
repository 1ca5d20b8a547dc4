// Peers is a mail server made of emersion/go-smtp. It throws messages away in
// its own process or, with -backend, is a gateway that passes them on over
// LMTP, on one connection for each session of a client.
//
// It is what mailgw is measured beside, and in a module of its own so that
// mailgw does not depend on go-smtp.
package main

import (
	"errors"
	"flag"
	"io"
	"log"
	"net"

	"github.com/emersion/go-smtp"
)

func main() {
	lmtp := flag.String("lmtp", "", "the `path` of a socket for LMTP")
	tcp := flag.String("smtp", "", "the `address` of a port for SMTP")
	backend := flag.String("backend", "", "the `path` of the LMTP socket that mail is passed on to")
	flag.Parse()

	ended := make(chan error)
	serve := func(network, address string) {
		l, err := net.Listen(network, address)
		if err != nil {
			log.Fatal(err)
		}
		s := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return open(*backend) }))
		s.LMTP = network == "unix"
		s.Domain = "peers.example"
		go func() { ended <- s.Serve(l) }()
	}
	serve("unix", *lmtp)
	serve("tcp", *tcp)
	log.Fatal(<-ended)
}

// open returns a session of a client.
func open(backend string) (smtp.Session, error) {
	if backend == "" {
		return discard{}, nil
	}
	c, err := net.Dial("unix", backend)
	if err != nil {
		return nil, err
	}
	return &gateway{client: smtp.NewClientLMTP(c)}, nil
}

// A discard takes all messages, and reads them.
type discard struct{}

func (discard) Reset()                               {}
func (discard) Logout() error                        { return nil }
func (discard) Mail(string, *smtp.MailOptions) error { return nil }
func (discard) Rcpt(string, *smtp.RcptOptions) error { return nil }

func (discard) Data(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// A gateway passes on what it hears, and answers what it is answered.
type gateway struct {
	client     *smtp.Client
	recipients []string
	open       bool // there is a transaction, and DATA was not said
}

func (g *gateway) Logout() error { return g.client.Quit() }

func (g *gateway) Reset() {
	if g.open {
		g.client.Reset()
	}
	g.open = false
}

func (g *gateway) Mail(from string, options *smtp.MailOptions) error {
	g.open, g.recipients = true, g.recipients[:0]
	return g.client.Mail(from, options)
}

func (g *gateway) Rcpt(to string, options *smtp.RcptOptions) error {
	g.recipients = append(g.recipients, to)
	return g.client.Rcpt(to, options)
}

// Data is for clients that speak SMTP.
func (g *gateway) Data(r io.Reader) error {
	w, err := g.send(r)
	if err != nil {
		return err
	}
	return w.Close()
}

// LMTPData is for clients that speak LMTP.
func (g *gateway) LMTPData(r io.Reader, status smtp.StatusCollector) error {
	w, err := g.send(r)
	if err != nil {
		return err
	}
	accepted, err := w.CloseWithLMTPResponse()
	refused, ok := errors.AsType[smtp.LMTPDataError](err)
	if err != nil && !ok {
		return err
	}
	for _, to := range g.recipients {
		switch {
		case accepted[to] != nil:
			status.SetStatus(to, nil)
		case refused[to] != nil:
			status.SetStatus(to, refused[to])
		}
	}
	return nil
}

func (g *gateway) send(r io.Reader) (*smtp.DataCommand, error) {
	w, err := g.client.Data()
	if err != nil {
		return nil, err
	}
	g.open = false
	_, err = io.Copy(w, r)
	return w, err
}
