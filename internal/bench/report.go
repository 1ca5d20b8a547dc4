package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// A column is a figure that a table has of each server.
type column struct {
	title  string
	value  func(load, sample) float64
	format string
	ratio  string // title of the column of mailgw's to this one's, if there is one
	brief  bool   // the median only
}

// A table is what is printed of a scenario.
type table []column

func plain(m metric) func(load, sample) float64 {
	return func(_ load, s sample) float64 { return m(s) }
}

var (
	cost = []column{
		{title: "CPU us", value: plain(cpu), format: "%.1f", ratio: "CPU x"},
		{title: "server", value: plain(func(s sample) float64 { return s.front }), format: "%.1f", brief: true},
		{title: "+behind", value: plain(func(s sample) float64 { return s.behind }), format: "%.1f", brief: true},
		{title: "p50 us", value: plain(p50), format: "%.0f", brief: true, ratio: "p50 x"},
		{title: "p99 us", value: plain(p99), format: "%.0f", brief: true, ratio: "p99 x"},
	}
	byMessages = append(table{
		{title: "messages/s", value: plain(rate), format: "%.0f", ratio: "rate x"},
	}, cost...)
	byMegabytes = append(table{
		{title: "MB/s", value: func(l load, s sample) float64 { return s.rate * float64(l.size) / 1e6 }, format: "%.0f", ratio: "rate x"},
	}, cost...)
	byPeak = table{
		{title: "MiB", value: plain(mebibytes), format: "%.0f"},
	}
	bySession = table{
		{title: "KiB a session", value: plain(kibibytes), format: "%.1f"},
	}
)

// print prints a row for each server that was measured, and names those that are
// missing below, where what is said of them widens no column. A column "x" is what
// mailgw's figure is to the one of that server.
func (s *scenario) print(w io.Writer, samples map[string][]sample, absent map[string]error) {
	fmt.Fprintf(w, "\n%s\n\n", s.title)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "  \t%s\n", strings.Join(s.table.titles(), "\t"))
	for _, server := range s.servers {
		if samples[server] != nil {
			fmt.Fprintf(t, "  %s\t%s\n", server, strings.Join(s.row(samples[server], samples[mailgw]), "\t"))
		}
	}
	t.Flush()
	for _, server := range s.servers {
		if absent[server] != nil {
			fmt.Fprintf(w, "  %s: %v\n", server, absent[server])
		}
	}
}

func (t table) titles() (titles []string) {
	var ratios []string
	for _, c := range t {
		titles = append(titles, c.title)
		if c.ratio != "" {
			ratios = append(ratios, c.ratio)
		}
	}
	return append(titles, ratios...)
}

// row returns the cells of a server.
func (s *scenario) row(samples, ours []sample) (cells []string) {
	var last []string
	for _, c := range s.table {
		value := metric(func(x sample) float64 { return c.value(s.load, x) })
		values := value.in(samples)
		if c.brief {
			cells = append(cells, fmt.Sprintf(c.format, median(values)))
		} else {
			cells = append(cells, spread(c.format, values))
		}
		if c.ratio != "" && ours != nil {
			last = append(last, fmt.Sprintf("%.2f", median(ratios(value.in(ours), values))))
		}
	}
	return append(cells, last...)
}

// printVerdicts prints for goals whether their bounds hold.
func printVerdicts(w io.Writer, numbers []int, r results) {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	defer t.Flush()
	for _, number := range numbers {
		for _, b := range goals[number].bounds {
			fmt.Fprintf(t, "goal %d\t%s\t%s\n", number, b.what, b.verdict(r))
		}
	}
}

func (b bound) verdict(r results) string {
	values := b.value(r)
	if len(values) == 0 {
		return "not measured"
	}
	limit, word, met := b.atMost, "at most", median(values) <= b.atMost
	if b.atLeast > 0 {
		limit, word, met = b.atLeast, "at least", median(values) >= b.atLeast
	}
	verdict := "met"
	if !met {
		verdict = "NOT MET"
	}
	return strings.TrimRight(fmt.Sprintf("%s\t%s %g %s", spread("%.2f", values), word, limit, b.unit), " ") + "\t" + verdict
}
