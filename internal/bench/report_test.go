package main

import (
	"errors"
	"strings"
	"testing"
)

// Each server has a row, mailgw's figures are compared with those of each, and
// who is missing is named without a row.
func TestTable(t *testing.T) {
	s := &scenario{title: "4 KiB", load: load{size: 4 << 10}, servers: []string{mailgw, postfix, sink, dovecot, goSMTP}, table: byMessages}
	samples := map[string][]sample{
		mailgw: {{100, 40, 20, 200, 900, 0}, {300, 50, 30, 300, 800, 0}, {200, 45, 25, 400, 700, 0}},
		sink:   {{200, 30, 0, 100, 100, 0}, {200, 40, 0, 100, 100, 0}, {200, 35, 0, 100, 100, 0}},
	}
	absent := map[string]error{postfix: missing(errors.New("no postconf, wherever it was looked for")), dovecot: errNotRoot}
	var got strings.Builder
	s.print(&got, samples, absent)
	want := `
4 KiB

             messages/s     CPU us            server  +behind  p50 us  p99 us  rate x  CPU x  p50 x  p99 x
  mailgw     200 (100-300)  70.0 (60.0-80.0)  45.0    25.0     300     800     1.00    1.00   1.00   1.00
  smtp-sink  200 (200-200)  35.0 (30.0-40.0)  35.0    0.0      100     100     1.00    2.00   3.00   8.00
  Postfix: missing: no postconf, wherever it was looked for
  Dovecot: missing: it runs as root only
`
	if got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
}

func TestVerdicts(t *testing.T) {
	for _, test := range []struct {
		bound  bound
		values []float64
		want   string
	}{
		{bound{atMost: 60, unit: "us"}, []float64{61, 58, 60}, "60.00 (58.00-61.00)\tat most 60 us\tmet"},
		{bound{atMost: 60, unit: "us"}, []float64{61}, "61.00\tat most 60 us\tNOT MET"},
		{bound{atLeast: 0.65}, []float64{0.5, 1}, "0.75 (0.50-1.00)\tat least 0.65\tmet"},
		{bound{atLeast: 0.65}, []float64{0.6}, "0.60\tat least 0.65\tNOT MET"},
		{bound{atLeast: 0.65}, nil, "not measured"},
	} {
		test.bound.value = func(results) []float64 { return test.values }
		if got := test.bound.verdict(nil); got != test.want {
			t.Errorf("%v: got %q, want %q", test.values, got, test.want)
		}
	}
}
