package main

import (
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// So many servers wait for a filter before the queue: SMTPD_PROXY_README.
const proxyProcesses = 20

// beforeQueue lets Postfix show mail to the listener before it takes it.
func (p *postfixSide) beforeQueue() {
	p.use = "a filter before the queue"
	filter := "unix:" + p.socket
	if p.socket == "" {
		filter = net.JoinHostPort(p.host, p.port)
	}
	processes := p.processes(proxyProcesses)
	options := []postfixParameter{
		{name: "smtpd_proxy_filter", value: filter},
		{name: "smtpd_proxy_options", value: "speed_adjust", off: true,
			why: "The filter gets a message when all of it is here, and refuses none or all of its recipients."},
		{name: "smtpd_client_connection_count_limit", value: strconv.Itoa(max(1, processes/2)), why: "One client does not take all processes."},
	}
	if p.UnknownParameters == "refuse" {
		p.warn(`Postfix repeats what its clients say, and some of it is refused; want unknown_parameters = "keep"`)
		if !p.DSN {
			options = append(options, postfixParameter{name: "smtpd_discard_ehlo_keywords", value: "dsn", why: "What is refused is not offered."})
		}
	}
	if max(p.Limits.AnswerTimeout, p.Limits.AskTimeout) >= proxyPatience {
		p.warn("Postfix waits %s only (smtpd_proxy_timeout); want limits.answer_timeout = %q, and no longer limits.ask_timeout", seconds(proxyPatience), "90s")
	}
	p.services = append(p.services, postfixService{
		name: "smtp  inet", columns: p.columns("n", processes) + "smtpd", options: options,
		why: "Instead of the line that is there. Where postscreen is in front, the options are for the smtpd of type pass.",
	})
}

// comesBack adds the servers that take mail from the filter. What was done
// before it is not done again.
func (p *postfixSide) comesBack(targets []string, done string) {
	for _, target := range targets {
		s, networks, why := p.server(target)
		if why != "" {
			p.remark("What goes to %s does not come back: %s.", target, why)
			continue
		}
		s.why = "Here mail comes back."
		s.options = slices.Concat([]postfixParameter{
			{name: "content_filter"},
			{name: "receive_override_options", value: done},
			{name: "mynetworks", value: networks},
			{name: "smtpd_authorized_xforward_hosts", value: networks},
			{name: "local_header_rewrite_clients", why: "It comes from this machine, but was not written here: headers stay as they are."},
			{name: "smtpd_forbid_bare_newline", value: "reject", why: "None comes from the filter, which is in mynetworks."},
			{name: "smtpd_forbid_bare_newline_exclusions"},
			{name: "smtpd_client_restrictions"},
			{name: "smtpd_helo_restrictions"},
			{name: "smtpd_sender_restrictions"},
			{name: "smtpd_relay_restrictions", value: "permit_mynetworks,reject"},
			{name: "smtpd_recipient_restrictions", value: "permit_mynetworks,reject"},
			{name: "smtpd_data_restrictions"},
			{name: "smtpd_end_of_data_restrictions"},
		}, s.options)
		p.services = append(p.services, s)
	}
}

// Postfix takes clients on unix sockets for local ones, of IPv4 or IPv6.
const bothLoopbacks = "127.0.0.0/8,[::1]/128"

// Whatever main.cf has.
var (
	inClear   = []postfixParameter{{name: "smtpd_tls_security_level", value: "none"}}
	encrypted = postfixParameter{name: "smtpd_tls_security_level", value: "encrypt", why: "It takes smtpd_tls_cert_file in main.cf."}
)

// server returns the server of Postfix's that is the target of a relay, and
// from which networks the relay connects to it; or why there is none.
func (p *postfixSide) server(target string) (s postfixService, networks, why string) {
	u, err := url.Parse(target)
	if err != nil {
		return s, "", "it is no URL"
	}
	if u.Scheme == "smtp+unix" {
		directory, name := filepath.Split(u.Path)
		private := map[string]string{"public": "n", "private": "y"}[filepath.Base(directory)]
		if filepath.Dir(filepath.Clean(directory)) != filepath.Clean(p.queue) || private == "" || strings.ContainsFunc(name, unicode.IsSpace) {
			return s, "", "Postfix makes its sockets in " + p.queue + "/public"
		}
		return postfixService{name: name + "  unix", columns: p.columns(private, defaultProcesses) + "smtpd", options: inClear}, bothLoopbacks, ""
	}
	addr, _ := netip.ParseAddr(u.Hostname())
	switch {
	case u.Hostname() == "localhost":
		networks = bothLoopbacks
	case !addr.IsLoopback():
		return s, "", "it may be on another machine, since it has no loopback address"
	case addr.Is4():
		networks = "127.0.0.0/8"
	default:
		networks = "[::1]/128"
	}
	tls, ok := map[string][]postfixParameter{
		"smtp":          inClear,
		"smtp+starttls": {encrypted},
		"smtps":         {encrypted, {name: "smtpd_tls_wrappermode", value: "yes"}},
	}[u.Scheme]
	switch port := u.Port(); {
	case !ok:
		return s, "", "it is no SMTP server"
	case port == "" || port == "25":
		return s, "", "port 25 is where Postfix takes all mail, which would go round in circles"
	}
	return postfixService{name: u.Host + "  inet", columns: p.columns("n", defaultProcesses) + "smtpd", options: tls}, networks, ""
}
