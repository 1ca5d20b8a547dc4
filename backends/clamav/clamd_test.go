package clamav

import (
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

func TestAddresses(t *testing.T) {
	tests := []struct{ text, network, address string }{
		{"unix:/run/clamav/clamd.ctl", "unix", "/run/clamav/clamd.ctl"},
		{"unix:clamd", "unix", "clamd"},
		{"unix:@clamd", "unix", "@clamd"},
		{"tcp:127.0.0.1:3310", "tcp", "127.0.0.1:3310"},
		{"tcp:[::1]:3310", "tcp", "[::1]:3310"},
		{"tcp:scanner.example.org:3310", "tcp", "scanner.example.org:3310"},
	}
	for _, tt := range tests {
		network, address, err := parseAddress(tt.text)
		if network != tt.network || address != tt.address || err != nil {
			t.Errorf("%s: got %q, %q, %v", tt.text, network, address, err)
		}
	}
}

// Only one answer is clean, and the name of a virus can stand in a reply.
func FuzzParseAnswer(f *testing.F) {
	for _, text := range []string{"", "stream: OK", "stream: Eicar-Test(abc:68) FOUND", "stream: OK FOUND", "stream: x ERROR",
		"INSTREAM size limit exceeded. ERROR", "stream: \xff\r\n FOUND"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, err := parseAnswer(text)
		if clean := err == nil && v == (verdict{}); clean != (text == "stream: OK") {
			t.Errorf("%q: got %+v, %v", text, v, err)
		}
		if v.virus == "" {
			return
		}
		if !strings.HasSuffix(text, " FOUND") || err != nil {
			t.Errorf("%q: got %+v, %v", text, v, err)
		}
		s := backends.NewStatus(550, "5.7.1", v.virus)
		if s.Sanitized() != s || len(v.virus) > maxName || strings.Contains(v.virus, " ") {
			t.Errorf("%q: the name is %q", text, v.virus)
		}
	})
}
