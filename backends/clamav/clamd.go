package clamav

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
)

// parseAddress takes the forms that listeners have in gateway.toml.
func parseAddress(s string) (network, address string, err error) {
	network, address, _ = strings.Cut(s, ":")
	switch {
	case network == "unix" && address != "" && address != "@":
		return network, address, nil
	case network == "tcp":
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return "", "", err
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
			return "", "", errors.New("want tcp:HOST:PORT")
		}
		return network, address, nil
	}
	return "", "", errors.New("want unix:PATH or tcp:HOST:PORT")
}

// A verdict is what clamd says of a message. The zero verdict is that it is
// clean.
type verdict struct {
	virus    string // its name, printable
	tooLarge bool
	by       string // whose limit that is
}

// scan sends a message to clamd and returns its verdict, or an error if there
// is no clear one. The end of ctx ends it.
func scan(ctx context.Context, network, address string, message io.Reader) (verdict, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return verdict{}, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	// If the message is too much for clamd, it answers in the middle of it and
	// reads no more. So the answer is waited for from the beginning, and ends
	// the sending.
	type answer struct {
		text string
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		text, err := readAnswer(conn)
		conn.Close()
		answered <- answer{text, err}
	}()
	unsent := send(conn, message)
	a := <-answered
	if a.err != nil {
		return verdict{}, a.err
	}
	v, err := parseAnswer(a.text)
	if err == nil && unsent != nil && !v.tooLarge {
		return verdict{}, fmt.Errorf("clamd answers %q before the end of the message", a.text)
	}
	return v, err
}

// chunkSize is how much is sent at once: clamd has a limit for the whole only.
const chunkSize = 64 << 10

// send sends a message as clamd(8) has it for INSTREAM: in chunks, each after
// its length, with an empty one at the end. A message that cannot be read to
// its end has no such end.
func send(conn net.Conn, message io.Reader) error {
	if _, err := io.WriteString(conn, "zINSTREAM\x00"); err != nil {
		return err
	}
	const length = 4
	buf := make([]byte, length+chunkSize)
	for {
		n, err := io.ReadFull(message, buf[length:])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			conn.Close() // there will be no answer
			return err
		}
		binary.BigEndian.PutUint32(buf, uint32(n))
		if _, err := conn.Write(buf[:length+n]); err != nil || n == 0 {
			return err
		}
	}
}

const (
	maxAnswer = 4 << 10
	maxName   = 100 // of a virus
)

// readAnswer returns an answer without the NUL at its end.
func readAnswer(r io.Reader) (string, error) {
	text, err := bufio.NewReader(io.LimitReader(r, maxAnswer)).ReadString(0)
	if err == io.EOF {
		return "", fmt.Errorf("clamd answers %.100q, which has no end", text)
	}
	return strings.TrimSuffix(text, "\x00"), err
}

// parseAnswer takes "stream: OK", "stream: NAME FOUND", and the answer to a
// message that is too large. Nothing else is a verdict.
func parseAnswer(text string) (verdict, error) {
	if text == "INSTREAM size limit exceeded. ERROR" {
		return verdict{tooLarge: true, by: "StreamMaxLength of clamd"}, nil
	}
	if found, ok := strings.CutPrefix(text, "stream: "); ok {
		name, isVirus := strings.CutSuffix(found, " FOUND")
		switch {
		case found == "OK":
			return verdict{}, nil
		case isVirus && name != "":
			return verdict{virus: printable(name)}, nil
		}
	}
	return verdict{}, fmt.Errorf("clamd answers %.100q", text)
}

// printable returns the name of a virus in a form that may stand in a reply
// and a header field.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, name[:min(len(name), maxName)])
}
