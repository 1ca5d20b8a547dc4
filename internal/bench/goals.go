package main

// The servers by name.
const (
	mailgw        = "mailgw"
	mailgwWithTwo = "mailgw 2 plugins"
	sink          = "smtp-sink"
	goSMTP        = "go-smtp"
	goSMTPGateway = "go-smtp gateway"
	postfix       = "Postfix"
	dovecot       = "Dovecot"
)

var (
	everyone = []string{mailgw, sink, goSMTP, goSMTPGateway, postfix, dovecot}
	few      = []string{mailgw, sink, goSMTP}
	twice    = []string{mailgw, mailgwWithTwo}
)

// A scenario is a load, and the servers that it is tried on.
type scenario struct {
	title   string
	load    load
	servers []string
	measure measurement
	table   table
	fresh   bool // each round wants new processes
}

// lmtp is the load that most scenarios vary: by LMTP on a unix socket where a
// server speaks that, else by SMTP over TCP, on connections that are kept.
func lmtp(vary func(*load)) load {
	l := load{protocol: "lmtp", size: 4 << 10, sessions: 20, recipients: 1}
	if vary != nil {
		vary(&l)
	}
	return l
}

var (
	small = &scenario{
		"4 KiB", lmtp(nil), everyone, throughput, byMessages, false}
	smallBySMTP = &scenario{
		"4 KiB, SMTP over TCP", lmtp(func(l *load) { l.protocol = "smtp" }), everyone[:5], throughput, byMessages, false}
	fifty = &scenario{
		"4 KiB, 50 recipients", lmtp(func(l *load) { l.recipients = 50 }), everyone, throughput, byMessages, false}
	reconnecting = &scenario{
		"4 KiB, a new connection for each message", lmtp(func(l *load) { l.reconnect = true }), everyone, throughput, byMessages, false}
	large = &scenario{
		"1 MiB", lmtp(func(l *load) { l.size = 1 << 20 }), everyone, throughput, byMegabytes, false}
	huge = &scenario{
		"25 MiB", lmtp(func(l *load) { l.size = 25 << 20 }), everyone[:4], throughput, byMegabytes, false}
	hugeAtOnce = &scenario{
		"25 MiB, the most memory while 20 messages end at the same moment", lmtp(func(l *load) { l.size, l.together = 25<<20, true }), everyone[:4], peak, byPeak, true}
	alone = &scenario{
		"4 KiB, one session", lmtp(func(l *load) { l.sessions = 1 }), everyone, throughput, byMessages, false}
	idling = &scenario{
		"10,000 idle sessions", lmtp(func(l *load) { l.sessions = 10_000 }), few, idle, bySession, true}
	sessions200 = &scenario{
		"4 KiB, 200 sessions", lmtp(func(l *load) { l.sessions = 200 }), few, throughput, byMessages, false}
	sessions2000 = &scenario{
		"4 KiB, 2,000 sessions", lmtp(func(l *load) { l.sessions = 2000 }), few, throughput, byMessages, false}
	recipients1000 = &scenario{
		"4 KiB, 1,000 recipients", lmtp(func(l *load) { l.recipients = 1000 }), few, throughput, byMessages, false}
	two = &scenario{
		"4 KiB, two plugins in the route", small.load, twice, throughput, byMessages, false}
	twoFifty = &scenario{
		"4 KiB, 50 recipients, two plugins in the route", fifty.load, twice, throughput, byMessages, false}
)

// A goal is what the project wants to reach.
type goal struct {
	scenarios []*scenario
	bounds    []bound
}

// A bound is what a figure may be.
type bound struct {
	what            string
	value           figure
	atMost, atLeast float64 // one of them
	unit            string
}

// goals are those of the project, by number.
var goals = map[int]goal{
	1: {[]*scenario{small, smallBySMTP}, []bound{
		{what: "CPU of a message of 4 KiB", value: cpu.of(small, mailgw), atMost: 60, unit: "us"},
		{what: "messages a second over LMTP, to smtp-sink's", value: rate.to(small, sink), atLeast: 0.65},
		{what: "messages a second over SMTP, to smtp-sink's", value: rate.to(smallBySMTP, sink), atLeast: 0.75},
	}},
	2: {[]*scenario{fifty}, []bound{
		{what: "CPU of a message for 50 recipients", value: cpu.of(fifty, mailgw), atMost: 150, unit: "us"},
	}},
	3: {[]*scenario{reconnecting}, []bound{
		{what: "CPU with new connections, to smtp-sink's", value: cpu.to(reconnecting, sink), atMost: 2},
	}},
	4: {[]*scenario{large, huge, hugeAtOnce}, []bound{
		{what: "MB a second in messages of 1 MiB, to go-smtp's", value: rate.to(large, goSMTP), atLeast: 1.2},
		{what: "MB a second in messages of 25 MiB, to go-smtp's", value: rate.to(huge, goSMTP), atLeast: 1.2},
		{what: "memory with 20 messages of 25 MiB under way", value: mebibytes.of(hugeAtOnce, mailgw), atMost: 96, unit: "MiB"},
	}},
	5: {[]*scenario{alone, small}, []bound{
		{what: "p50 of one session, to go-smtp's", value: p50.to(alone, goSMTP), atMost: 1.3},
		{what: "p99 of 20 sessions, to go-smtp's", value: p99.to(small, goSMTP), atMost: 1},
	}},
	6: {[]*scenario{idling}, []bound{
		{what: "memory of an idle session", value: kibibytes.of(idling, mailgw), atMost: 12, unit: "KiB"},
	}},
	7: {[]*scenario{small, sessions200, sessions2000, fifty, recipients1000, two, twoFifty}, []bound{
		{what: "CPU of a message in 2,000 sessions, to that in 20", value: quotient(cpu.of(sessions2000, mailgw), cpu.of(small, mailgw)), atMost: 1.5},
		{what: "CPU of a recipient of 1,000, to that of 50", value: quotient(each(recipients1000), each(fifty)), atMost: 1.5},
		{what: "CPU of a message of 4 KiB with two plugins", value: cpu.of(two, mailgwWithTwo), atMost: 80, unit: "us"},
		{what: "CPU for 50 recipients with two plugins", value: cpu.of(twoFifty, mailgwWithTwo), atMost: 170, unit: "us"},
	}},
}

// each is the CPU time that mailgw takes for each recipient of a message beyond
// the first, microseconds.
func each(s *scenario) figure {
	return func(r results) []float64 {
		one := median(cpu.of(small, mailgw)(r))
		values := cpu.of(s, mailgw)(r)
		for i := range values {
			values[i] = (values[i] - one) / float64(s.load.recipients-1)
		}
		return values
	}
}
