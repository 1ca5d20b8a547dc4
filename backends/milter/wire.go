package milter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// The milter protocol has no standard but libmilter of Sendmail; the numbers are
// those of its mfdef.h. A packet is a length of four octets, a command of the MTA
// or an answer of the milter, which is one octet, and its data.

const (
	newestVersion = 6
	oldestVersion = 2

	// maxData is how much data libmilter takes in a packet, and the size of a
	// piece of a body.
	maxData = 65535

	// maxAnswer is how much is taken from a milter, which bounds itself to
	// maxData in most answers.
	maxAnswer = 2 * maxData
)

// A step is something that the MTA tells the milter of.
type step struct {
	command  byte
	name     string
	unwanted uint32 // SMFIP_NO*: the milter does not want to be told
	silent   uint32 // SMFIP_NR_*: it does not answer
	answers  string

	// macros are those that it gets, if it does not ask for others. stage is
	// the number that it asks with (SMFIM_*).
	macros []string
	stage  uint32
}

var (
	stepConnect = step{'C', "connection", 1 << 0, 1 << 12, onSession, []string{
		"j", "v", "_", "{daemon_name}", "{daemon_addr}", "{daemon_port}",
		"{client_addr}", "{client_name}", "{client_port}", "{client_ptr}"}, 0}
	stepHELO   = step{'H', "HELO", 1 << 1, 1 << 13, onSession, []string{"r", "s", "{tls_version}", "{cipher}", "{cert_subject}"}, 1}
	stepMAIL   = step{'M', "MAIL", 1 << 2, 1 << 14, onMessage, []string{"i", "{auth_type}", "{auth_authen}", "{mail_addr}"}, 2}
	stepRCPT   = step{'R', "RCPT", 1 << 3, 1 << 15, onMessage, []string{"i", "{rcpt_addr}"}, 3}
	stepDATA   = step{'T', "DATA", 1 << 9, 1 << 16, onMessage, []string{"i"}, 4}
	stepHeader = step{'L', "header", 1 << 5, 1 << 7, onMessage, nil, 0}
	stepEOH    = step{'N', "end of header", 1 << 6, 1 << 18, onMessage, []string{"i"}, 6}
	stepBody   = step{'B', "body", 1 << 4, 1 << 19, onMessage + "s", nil, 0}
	stepEOM    = step{'E', "end of message", 0, 0, onMessage + edits, []string{"i"}, 5}
)

// What milters may answer, but for continue and progress.
const (
	onSession = "arty4f"
	onMessage = onSession + "d"
	edits     = "+-2behimq" // what they change, before the answer
)

// What is no step.
const (
	commandNegotiate = 'O'
	commandMacros    = 'D'
	commandAbort     = 'A'
	commandQuit      = 'Q'
)

const (
	answerContinue    = 'c'
	answerAccept      = 'a'
	answerDiscard     = 'd'
	answerSkip        = 's' // no more of the body
	answerProgress    = 'p' // the milter is busy, the answer follows
	answerReject      = 'r'
	answerTempfail    = 't'
	answerShutdown    = '4'
	answerConnFail    = 'f'
	answerReply       = 'y'
	answerAddField    = 'h'
	answerInsertField = 'i'
	answerChangeField = 'm'
	answerBody        = 'b'
	answerAddRcpt     = '+'
	answerAddRcptPar  = '2'
	answerDeleteRcpt  = '-'
	answerSender      = 'e'
	answerQuarantine  = 'q'
)

// What may be negotiated besides the steps: SMFIF_*, what the milter may change,
// and SMFIP_*, how it is told of steps.
const (
	actionQuarantine = 1 << 5
	actionSymbols    = 1 << 8   // SMFIF_SETSYMLIST: the milter asks for macros
	offeredActions   = 1<<9 - 1 // all that there are
	noUnknown        = 1 << 8   // no unknown commands: there are none
	silentUnknown    = 1 << 17  // no answer to them
	canSkip          = 1 << 10  // answerSkip
	leadingSpace     = 1 << 20  // values of fields have the space after the colon
)

// offeredSteps are all that steps may be told, and not be told.
var offeredSteps = func() uint32 {
	offered := uint32(noUnknown | silentUnknown | canSkip | leadingSpace)
	for _, s := range []step{stepConnect, stepHELO, stepMAIL, stepRCPT, stepDATA, stepHeader, stepEOH, stepBody} {
		offered |= s.unwanted | s.silent
	}
	return offered
}()

// writePacket writes a command and its data, which libmilter would not take if it
// were longer.
func writePacket(w io.Writer, command byte, data []byte) error {
	if len(data) > maxData {
		return fmt.Errorf("%d octets, and milters take %d", len(data), maxData)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(1+len(data)))
	if _, err := w.Write(append(head, command)); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// appendStrings appends strings as C has them. An octet 0 in them would end
// them, and is left out.
func appendStrings(data []byte, texts ...string) []byte {
	for _, s := range texts {
		data = append(data, strings.ReplaceAll(s, "\x00", "")...)
		data = append(data, 0)
	}
	return data
}

// readPacket reads an answer and its data.
func readPacket(r io.Reader) (code byte, data []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, noEOF(err)
	}
	size := binary.BigEndian.Uint32(head[:])
	if size < 1 || size > 1+maxAnswer {
		return 0, nil, fmt.Errorf("an answer of %d octets, want 1 to %d", size, 1+maxAnswer)
	}
	packet := make([]byte, size)
	if _, err := io.ReadFull(r, packet); err != nil {
		return 0, nil, noEOF(err)
	}
	return packet[0], packet[1:], nil
}

// noEOF makes an error of an end where there must be none.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// An answer is what the milter says to a step, or one change of several.
type answer struct {
	code   byte
	status backends.Status // of refusals
	index  uint32          // of a field that is inserted or changed
	texts  []string        // name and value, address and parameters, reason
	body   []byte          // a piece of a new body
}

// params returns the ESMTP parameters of an address.
func (a answer) params() backends.Params {
	return strings.Fields(strings.Join(a.texts[1:], ""))
}

// shapes say of which data answers are.
var shapes = map[byte]struct {
	indexed  bool
	min, max int // texts
}{
	answerContinue: {}, answerAccept: {}, answerDiscard: {}, answerSkip: {}, answerProgress: {},
	answerReject: {}, answerTempfail: {}, answerShutdown: {}, answerConnFail: {},
	answerReply:       {min: 1, max: 1},
	answerAddField:    {min: 2, max: 2},
	answerInsertField: {indexed: true, min: 2, max: 2},
	answerChangeField: {indexed: true, min: 2, max: 2},
	answerAddRcpt:     {min: 1, max: 1},
	answerAddRcptPar:  {min: 1, max: 2},
	answerDeleteRcpt:  {min: 1, max: 1},
	answerSender:      {min: 1, max: 2},
	answerQuarantine:  {min: 1, max: 1},
}

// parseAnswer reads the data of an answer.
func parseAnswer(code byte, data []byte) (a answer, err error) {
	a.code = code
	if code == answerBody {
		a.body = data
		return a, nil
	}
	shape, ok := shapes[code]
	if !ok {
		return a, fmt.Errorf("answer %q is none", code)
	}
	rest := data
	if shape.indexed {
		if len(rest) < 4 {
			return a, fmt.Errorf("answer %q without the position of a field", code)
		}
		a.index, rest = binary.BigEndian.Uint32(rest), rest[4:]
	}
	// Some milters leave the last 0 out.
	if rest = bytes.TrimSuffix(rest, []byte{0}); len(rest) > 0 || shape.min > 0 {
		a.texts = strings.Split(string(rest), "\x00")
	}
	if n := len(a.texts); n < shape.min || n > shape.max {
		return a, fmt.Errorf("answer %q with %d texts, want %d", code, n, shape.max)
	}
	a.status, err = a.parseStatus()
	return a, err
}

// What milters have no words of their own for.
var (
	rejected    = backends.NewStatus(550, "5.7.1", "rejected by a mail filter")
	unavailable = backends.NewStatus(451, "4.7.1", "try again later")
)

// parseStatus returns what a recipient is told, if the answer is a refusal.
func (a answer) parseStatus() (backends.Status, error) {
	switch a.code {
	case answerReject:
		return rejected, nil
	case answerTempfail, answerShutdown, answerConnFail:
		return unavailable, nil
	case answerReply:
		return parseReply(a.texts[0])
	}
	return backends.Status{}, nil
}

// parseReply reads a reply of the milter's own: "550 5.7.1 no", perhaps of several
// lines. Sendmail takes it for a format, so that %% is a percent sign.
func parseReply(text string) (backends.Status, error) {
	var r smtp.Reply
	more := true
	for line := range strings.SplitSeq(strings.TrimRight(percents.Replace(text), "\r\n"), "\n") {
		var err error
		if !more {
			return backends.Status{}, fmt.Errorf("reply %.100q goes on after its end", text)
		}
		if more, err = r.Add(strings.TrimSuffix(line, "\r")); err != nil {
			return backends.Status{}, err
		}
	}
	if more || r.Code < 400 {
		return backends.Status{}, fmt.Errorf("reply %.100q is no whole refusal", text)
	}
	return backends.NewStatus(r.Code, r.Enhanced, r.Text).Sanitized(), nil
}

var percents = strings.NewReplacer("%%", "%", "%", "")

// negotiated is what a milter answers first.
type negotiated struct {
	version, actions, steps uint32
	symbols                 map[uint32][]string // macros that it asks for, by stage
}

// parseNegotiated reads it, and checks it against what was offered.
func parseNegotiated(code byte, data []byte, actions uint32) (n negotiated, err error) {
	if code != commandNegotiate || len(data) < 12 {
		return n, fmt.Errorf("answer %q of %d octets, want %q of 12", code, len(data), commandNegotiate)
	}
	n.version = binary.BigEndian.Uint32(data)
	n.actions = binary.BigEndian.Uint32(data[4:])
	n.steps = binary.BigEndian.Uint32(data[8:]) & offeredSteps
	if n.version < oldestVersion || n.version > newestVersion {
		return n, fmt.Errorf("version %d, want %d to %d", n.version, oldestVersion, newestVersion)
	}
	switch n.actions &^ actions {
	case 0:
	case actionQuarantine:
		return n, errors.New("the milter wants to quarantine, and the setting quarantine is empty")
	default:
		return n, fmt.Errorf("the milter wants actions %#x, and was offered %#x", n.actions, actions)
	}
	if n.version < 4 {
		n.steps |= stepDATA.unwanted // it was new then
	}
	if n.actions&actionSymbols != 0 {
		n.symbols, err = parseSymbols(data[12:])
	}
	return n, err
}

// parseSymbols reads lists of macros: the number of a stage and "i {mail_addr}",
// again and again.
func parseSymbols(data []byte) (map[uint32][]string, error) {
	lists := map[uint32][]string{}
	for len(data) > 0 {
		end := -1
		if len(data) >= 4 {
			end = bytes.IndexByte(data[4:], 0)
		}
		if end < 0 {
			return nil, errors.New("a list of macros that has no end")
		}
		names := strings.FieldsFunc(string(data[4:4+end]), func(r rune) bool { return r == ' ' || r == ',' })
		for i, name := range names {
			names[i] = bracedMacro(name)
		}
		lists[binary.BigEndian.Uint32(data)] = names
		data = data[4+end+1:]
	}
	return lists, nil
}

// bracedMacro returns a macro's name as it goes over the wire: in braces, if it has
// several letters.
func bracedMacro(name string) string {
	if name = strings.Trim(name, "{}"); len(name) > 1 {
		return "{" + name + "}"
	}
	return name
}
