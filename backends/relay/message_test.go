package relay

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/mailgw/mailgw/backends"
)

// What a target cannot take is found wherever the message is cut.
func TestPassage(t *testing.T) {
	utf8 := backends.Params{"SMTPUTF8"}
	seven, eight := offer{}, offer{extensions: map[string]string{"8BITMIME": ""}}
	for _, test := range []struct {
		message string
		params  backends.Params
		offer   offer
		want    error
	}{
		{"Subject: a\r\n\r\nb\r\n", utf8, seven, nil},
		{"", utf8, seven, nil},
		{"Subject: ä\r\n\r\nb\r\n", utf8, eight, noUTF8Header},
		{"Subject: a\r\n ä\r\n\r\nb\r\n", utf8, eight, noUTF8Header},
		{"Subject: a\r\n\r\nä\r\n", utf8, eight, nil},
		{"\r\nä\r\n", utf8, eight, nil},
		{"Subject: ä\r\n\r\nb\r\n", nil, eight, nil},
		{"Subject: ä\r\n\r\nb\r\n", utf8, seven, noUTF8Header},
		{"Subject: a\r\n\r\n\xff\r\n", nil, seven, noEightBit},
		{"\x80", nil, seven, noEightBit},
	} {
		for name, cut := range map[string]func(io.Reader) io.Reader{
			"whole": func(r io.Reader) io.Reader { return r },
			"cut":   iotest.OneByteReader,
			"late":  iotest.DataErrReader,
		} {
			tx := newTransaction()
			tx.Envelope.Params = test.params
			tx.Body, tx.Size = cut(strings.NewReader(test.message)), int64(len(test.message))
			p := newPassage(tx, tx.Body, test.offer)
			got, err := io.ReadAll(p)
			if !errors.Is(err, test.want) || err == nil && string(got) != test.message {
				t.Errorf("%s %q: got %q, %v, want %v", name, test.message, got, err, test.want)
			}
		}
	}
}

// A message of another size than was told is no message.
func TestPassageOfAnotherSize(t *testing.T) {
	for _, size := range []int64{0, 3, 5} {
		tx := newTransaction()
		tx.Body, tx.Size = strings.NewReader("1234"), size
		if _, err := io.ReadAll(newPassage(tx, tx.Body, offer{})); err != errSize {
			t.Errorf("size %d: %v, want %v", size, err, errSize)
		}
	}
}

// The digest is of what has left: DATA ends the last line.
func TestPassageTellsWhatWasWritten(t *testing.T) {
	for _, test := range []struct{ message, data string }{
		{"", ""},
		{"Subject: a", "Subject: a\r\n"},
		{"Subject: a\r\n\r\nb\r\n", "Subject: a\r\n\r\nb\r\n"},
		{"Subject: a\r\n\r\nb", "Subject: a\r\n\r\nb\r\n"},
		{"Subject: a\r\n\r\n\x00", "Subject: a\r\n\r\n\x00\r\n"},
	} {
		for data, want := range map[bool]string{true: test.data, false: test.message} {
			tx := newTransaction()
			tx.Body, tx.Size = strings.NewReader(test.message), int64(len(test.message))
			p := newPassage(tx, tx.Body, offer{})
			io.Copy(io.Discard, p)
			digester := backends.NewDigester()
			io.WriteString(digester, want)
			if got, want := p.wrote(data), digester.Digest(); !reflect.DeepEqual(got, want) {
				t.Errorf("%q, by DATA %t: got %v, want %v", test.message, data, got, want)
			}
		}
	}
}
