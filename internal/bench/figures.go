package main

import (
	"fmt"
	"slices"
)

// results are the samples of the rounds, by scenario and name of the server.
type results map[*scenario]map[string][]sample

// A figure is something that has a value in each round, or none if it was not
// measured.
type figure func(results) []float64

// A metric is one of the figures of a sample.
type metric func(sample) float64

var (
	rate      metric = func(s sample) float64 { return s.rate }
	cpu       metric = func(s sample) float64 { return s.front + s.behind }
	p50       metric = func(s sample) float64 { return s.p50 }
	p99       metric = func(s sample) float64 { return s.p99 }
	mebibytes metric = func(s sample) float64 { return s.memory / (1 << 20) }
	kibibytes metric = func(s sample) float64 { return s.memory / (1 << 10) }
)

// in returns the value of each sample.
func (m metric) in(samples []sample) (values []float64) {
	for _, s := range samples {
		values = append(values, m(s))
	}
	return values
}

// of is the figure of a server.
func (m metric) of(s *scenario, server string) figure {
	return func(r results) []float64 { return m.in(r[s][server]) }
}

// to is the ratio of mailgw's figure to that of a peer.
func (m metric) to(s *scenario, peer string) figure {
	return quotient(m.of(s, mailgw), m.of(s, peer))
}

// quotient is the ratio of two figures, round by round.
func quotient(a, b figure) figure {
	return func(r results) []float64 { return ratios(a(r), b(r)) }
}

func ratios(a, b []float64) []float64 {
	values := make([]float64, min(len(a), len(b)))
	for i := range values {
		values[i] = a[i] / b[i]
	}
	return values
}

// median of no values is zero.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	switch n := len(sorted); {
	case n == 0:
		return 0
	case n%2 == 0:
		return (sorted[n/2-1] + sorted[n/2]) / 2
	default:
		return sorted[n/2]
	}
}

// spread prints the median, and the least and the most if there are several.
func spread(format string, values []float64) string {
	f := func(v float64) string { return fmt.Sprintf(format, v) }
	if len(values) < 2 {
		return f(median(values))
	}
	return fmt.Sprintf("%s (%s-%s)", f(median(values)), f(slices.Min(values)), f(slices.Max(values)))
}
