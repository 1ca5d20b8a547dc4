package milter

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// A session is a connection to a milter, after the negotiation.
type session struct {
	negotiated
	conn   net.Conn
	r      *bufio.Reader
	w      *bufio.Writer
	forget func() bool       // stops the watch of the deadline
	macros map[string]string // that are known
	extra  []string          // those of the settings that are not usual
	begun  bool              // a message is under way
}

// open connects to the milter and negotiates. The session is of no more use when
// ctx is over.
func open(ctx context.Context, network, path string, actions uint32) (*session, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, path)
	if err != nil {
		return nil, err
	}
	s := &session{conn: conn, r: bufio.NewReader(conn), w: bufio.NewWriter(conn)}
	s.forget = context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	if err := s.negotiate(actions); err != nil {
		s.close()
		return nil, fmt.Errorf("negotiation: %w", err)
	}
	return s, nil
}

func (s *session) negotiate(actions uint32) error {
	var data []byte
	for _, n := range []uint32{newestVersion, actions, offeredSteps} {
		data = binary.BigEndian.AppendUint32(data, n)
	}
	if err := writePacket(s.w, commandNegotiate, data); err != nil {
		return err
	}
	if err := s.w.Flush(); err != nil {
		return err
	}
	code, data, err := readPacket(s.r)
	if err != nil {
		return err
	}
	s.negotiated, err = parseNegotiated(code, data, actions)
	return err
}

// close takes leave of the milter, which is told if the message did not come to its
// end. Its answer is not waited for.
func (s *session) close() {
	s.forget()
	s.conn.SetDeadline(time.Now().Add(time.Second))
	if s.begun {
		writePacket(s.w, commandAbort, nil)
	}
	writePacket(s.w, commandQuit, nil)
	s.w.Flush()
	s.conn.Close()
}

// tell tells the milter of a step and returns its answer. That is to continue if
// the milter does not want to be told, or does not answer.
func (s *session) tell(st step, data []byte) (answer, error) {
	if err := s.tellMacros(st); err != nil {
		return answer{}, fmt.Errorf("%s: macros: %w", st.name, err)
	}
	if s.steps&st.unwanted != 0 {
		return answer{code: answerContinue}, nil
	}
	if err := writePacket(s.w, st.command, data); err != nil {
		return answer{}, fmt.Errorf("%s: %w", st.name, err)
	}
	if s.steps&st.silent != 0 {
		return answer{code: answerContinue}, nil
	}
	return s.listen(st)
}

// tellMacros sends the macros of a step that are known, of those that the milter
// asked for, or else of the usual ones. It gets them even if it does not want to be
// told of the step itself.
func (s *session) tellMacros(st step) error {
	if st.macros == nil {
		return nil
	}
	names, asked := s.symbols[st.stage]
	switch {
	case asked:
	case st.command == stepConnect.command:
		names = slices.Concat(st.macros, s.extra)
	default:
		names = st.macros
	}
	data := []byte{st.command}
	for _, name := range names {
		if value := s.macros[name]; value != "" {
			data = appendStrings(data, name, value)
		}
	}
	if len(data) == 1 {
		return nil
	}
	return writePacket(s.w, commandMacros, data)
}

// listen waits for an answer to a step.
func (s *session) listen(st step) (a answer, err error) {
	if err = s.w.Flush(); err == nil {
		for a.code = answerProgress; err == nil && a.code == answerProgress; {
			a, err = s.read()
		}
	}
	if err == nil && a.code != answerContinue && !strings.ContainsRune(st.answers, rune(a.code)) {
		err = fmt.Errorf("answer %q is none to that", a.code)
	}
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", st.name, err)
	}
	return a, nil
}

func (s *session) read() (answer, error) {
	code, data, err := readPacket(s.r)
	if err != nil {
		return answer{}, err
	}
	return parseAnswer(code, data)
}
