package main

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/mailgw/mailgw/gateway"
	"github.com/mailgw/mailgw/xforward"
)

// A postfixSetup is what Postfix needs to use a listener.
type postfixSetup struct {
	use      string // what for
	remarks  []string
	main     []postfixParameter // of main.cf
	services []postfixService   // of master.cf
}

func (s *postfixSetup) remark(format string, args ...any) {
	s.remarks = append(s.remarks, fmt.Sprintf(format, args...))
}

func (s *postfixSetup) warn(format string, args ...any) { s.remark("WARNING: "+format, args...) }

// A postfixParameter is a parameter of main.cf, or of a service.
type postfixParameter struct {
	name, value string
	why         string
	off         bool // it is there to be switched on
}

// A postfixService is an entry of master.cf.
type postfixService struct {
	name    string // and type
	columns string // and the command
	options []postfixParameter
	why     string
}

// How long Postfix waits by default for the answer to a message
// (lmtp_data_done_timeout and smtp_data_done_timeout), for that to a command
// (lmtp_rcpt_timeout and the like), and before the queue (smtpd_proxy_timeout).
const (
	messagePatience = 600 * time.Second
	commandPatience = 300 * time.Second
	proxyPatience   = 100 * time.Second
)

// Other defaults of Postfix.
const (
	defaultRecipients  = 50       // of a message: default_destination_recipient_limit
	defaultMessageSize = 10240000 // message_size_limit
	defaultProcesses   = 100      // of a service: default_process_limit
)

// So many servers wait for a filter before the queue: SMTPD_PROXY_README.
const proxyProcesses = 20

// A postfixSide is a listener as Postfix sees it, and what Postfix needs to use
// it.
type postfixSide struct {
	*gateway.ListenerConfig
	postfixSetup

	queue      string // directory
	socket     string // relative to it, if it is there; or
	host, port string
}

// setUpPostfix returns what Postfix needs to use a listener.
func setUpPostfix(c *gateway.Config, l *gateway.ListenerConfig, f postfixFlags) postfixSetup {
	p := postfixSide{ListenerConfig: l, queue: f.queue}
	p.locate()
	targets := relayTargets(c, l)
	before := f.before && l.Protocol == "smtp" && targets != nil
	if why := p.obstacle(before); why != "" {
		return postfixSetup{use: "not for Postfix, " + why}
	}
	switch {
	case before:
		p.beforeQueue()
		p.comesBack(targets, "no_unknown_recipient_checks")
	case targets != nil:
		p.afterQueue()
		p.comesBack(targets, "no_unknown_recipient_checks,no_header_body_checks,no_milters")
	default:
		p.delivery()
	}
	if filepath.IsAbs(p.socket) && p.chroot() == "y" {
		p.warn("in its chroot Postfix does not find the socket; want one in a directory below %s", p.queue)
	}
	p.warnOfTrust()
	return p.postfixSetup
}

// relayTargets returns the targets of the relays in which routes of a listener
// end, as the settings have them.
func relayTargets(c *gateway.Config, l *gateway.ListenerConfig) (targets []string) {
	for _, pattern := range l.RoutePatterns() {
		route := l.Routes[pattern]
		b := c.Backends[route[len(route)-1]]
		if b.Plugin != "relay" {
			continue
		}
		list, _ := b.Settings["targets"].([]any)
		for _, target := range list {
			if text := fmt.Sprint(target); !slices.Contains(targets, text) {
				targets = append(targets, text)
			}
		}
	}
	return targets
}

// locate finds what Postfix calls the listener. What listens on all addresses
// is found on that of this machine itself.
func (p *postfixSide) locate() {
	network, address, _ := strings.Cut(p.Address, ":")
	if network == "unix" {
		p.socket = address
		if below, err := filepath.Rel(p.queue, address); err == nil && filepath.IsLocal(below) {
			p.socket = below
		}
		return
	}
	p.host, p.port, _ = net.SplitHostPort(address)
	if addr, _ := netip.ParseAddr(p.host); p.host == "" || addr.IsUnspecified() {
		p.host = "127.0.0.1"
	}
}

// obstacle returns why Postfix cannot use the listener.
func (p *postfixSide) obstacle(before bool) string {
	switch {
	case strings.HasPrefix(p.socket, "@"):
		return "which cannot connect to a socket that is in no directory"
	case strings.ContainsFunc(p.socket, unicode.IsSpace):
		return "which cannot take a path with white space"
	case p.socket != "" && p.Protocol == "smtp" && !before:
		return "whose SMTP client cannot connect to a unix socket; want lmtp, or a filter before the queue"
	case p.port == "0":
		return "since port 0 is another one each time"
	case len(p.Proxy) > 0:
		return "which does not speak the PROXY protocol"
	case p.Auth.Required:
		return "which does not log in here"
	case before && (p.TLS.Mode == "implicit" || p.RequireTLS):
		return "which speaks no TLS before the queue"
	}
	return ""
}

// delivery lets Postfix deliver to the listener.
func (p *postfixSide) delivery() {
	p.use = "Postfix delivers to it"
	domains := strings.Join(p.domains(), " ")
	transport := "lmtp"
	if p.Protocol == "smtp" {
		transport = p.ownClient("This client delivers to " + p.Name + ", and leaves mail as it is.")
	} else {
		p.main = p.named(p.client())
	}
	p.main = append(p.main,
		postfixParameter{name: "virtual_mailbox_domains", value: cmp.Or(domains, "example.org"), off: domains == ""},
		postfixParameter{name: "virtual_mailbox_maps", value: "texthash:/etc/postfix/mailboxes", off: true,
			why: "Users, or Postfix takes mail for everybody in these domains, and bounces what is refused here."},
		postfixParameter{name: "virtual_transport", value: transport + ":" + p.nexthop()},
	)
	p.limitClient(transport)
}

// domains returns the domains that have routes.
func (p *postfixSide) domains() (domains []string) {
	for _, pattern := range p.RoutePatterns() {
		_, domain, _ := strings.Cut(pattern[max(0, strings.LastIndexByte(pattern, '@')):], "@")
		if domain != "" && domain != "*" && !slices.Contains(domains, domain) {
			domains = append(domains, domain)
		}
	}
	return domains
}

// nexthop is the listener in the form of transport(5).
func (p *postfixSide) nexthop() string {
	switch {
	case p.socket != "":
		return "unix:" + p.socket
	case p.Protocol == "lmtp":
		return "inet:[" + p.host + "]:" + p.port
	}
	return "[" + p.host + "]:" + p.port
}

// afterQueue lets Postfix give the mail in its queue to the listener.
func (p *postfixSide) afterQueue() {
	p.use = "a filter after the queue"
	transport := p.ownClient("This client hands mail to the filter, and leaves it as it is.")
	p.main = []postfixParameter{
		{name: "content_filter", value: transport + ":" + p.nexthop()},
		{name: "receive_override_options", value: "no_address_mappings",
			why: "Aliases and copies (always_bcc) are for mail that has come back, or they would count twice."},
	}
	if !p.DSN {
		p.warn("Postfix tells senders who ask for success that their mail was relayed, and forgets ENVID and ORCPT; want dsn = true")
	}
	if p.Mirror {
		p.warn("until the relay has reached its target, Postfix bounces mail that needs SMTPUTF8; want mirror = false, since Postfix takes all of it back")
	}
	p.limitClient(transport)
}

// limitClient lets a client of Postfix's send no more recipients at once than the
// listener takes, and warns of other limits.
func (p *postfixSide) limitClient(transport string) {
	most, why := p.Limits.Recipients, ""
	if p.Protocol == "smtp" {
		most, why = 1, "SMTP has one answer for all recipients of a message, so each gets one of its own; in LMTP they share it."
	}
	if most > 0 && most < defaultRecipients {
		p.main = append(p.main, postfixParameter{name: transport + "_destination_recipient_limit", value: strconv.Itoa(most), why: why})
	}
	if wait := p.Limits.AskTimeout; wait >= commandPatience {
		p.warn("Postfix waits %s for the answer to a command; want a shorter limits.ask_timeout", seconds(commandPatience))
	}
	if size := p.Limits.MessageSize; size > 0 && size < defaultMessageSize {
		p.warn("Postfix takes messages of %d octets, and bounces those that are larger than limits.message_size; want as much, or a smaller message_size_limit in main.cf", defaultMessageSize)
	}
}

// ownClient adds a client of Postfix's that is for the listener alone, and
// returns its name.
func (p *postfixSide) ownClient(why string) string {
	options := p.client()
	if p.TLS.Mode == "off" {
		options = append(options, postfixParameter{name: "tls_security_level", value: "none"})
	}
	if addr, _ := netip.ParseAddr(p.host); addr.IsLoopback() {
		name := "bind_address"
		if addr.Is6() {
			name = "bind_address6"
		}
		options = append(options, postfixParameter{name: name, value: p.host, why: "It is trusted as long as it comes from here."})
	}
	options = append(options,
		postfixParameter{name: "fallback_relay", why: "What main.cf may have for mail that leaves this machine does not hold here."},
		postfixParameter{name: "generic_maps"},
		postfixParameter{name: "header_checks"},
		postfixParameter{name: "mime_header_checks"},
		postfixParameter{name: "nested_header_checks"},
		postfixParameter{name: "body_checks"},
	)
	options = p.named(options)
	if p.Mirror {
		options = append(options, postfixParameter{name: "disable_mime_output_conversion", value: "yes", why: "Not even where 8BITMIME is not announced."})
	}
	name := "mailgw-" + p.Name
	p.services = append(p.services, postfixService{
		name: name + "  unix", columns: p.columns("-", p.processes(defaultProcesses)) + p.Protocol, options: options, why: why,
	})
	return name
}

// client are the parameters that all clients of the listener need.
func (p *postfixSide) client() []postfixParameter {
	parameters := []postfixParameter{
		{name: "send_xforward_command", value: "yes", why: "Who the client is, and the queue id."},
		{name: "line_length_limit", value: "0", why: "Long lines are not broken."},
	}
	if wait := p.Limits.AnswerTimeout; wait >= messagePatience {
		parameters = append(parameters, postfixParameter{name: "data_done_timeout",
			value: seconds(wait + time.Minute), why: "More than limits.answer_timeout, or mail comes twice."})
	}
	if p.TLS.Mode != "off" {
		parameters = append(parameters, postfixParameter{name: "tls_security_level", value: "encrypt"})
	}
	if p.TLS.Mode == "implicit" {
		parameters = append(parameters, postfixParameter{name: "tls_wrappermode", value: "yes"})
	}
	return parameters
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.0fs", d.Seconds()) }

// named gives parameters of smtp(8) and lmtp(8) the names that they have in the
// one of them.
func (p *postfixSide) named(parameters []postfixParameter) []postfixParameter {
	for i := range parameters {
		parameters[i].name = p.Protocol + "_" + parameters[i].name
	}
	return parameters
}

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

// processes returns how many of n processes there are to be: no more than may
// connect.
func (p *postfixSide) processes(n int) int {
	for _, limit := range []int{p.Limits.Connections, p.Limits.ConnectionsPerPeer} {
		if limit > 0 {
			n = min(n, limit)
		}
	}
	return n
}

// columns are those of master.cf from the third to the last but the command.
// Where Postfix has a chroot, as on Debian, so has the service.
func (p *postfixSide) columns(private string, processes int) string {
	most := "-"
	if processes != defaultProcesses {
		most = strconv.Itoa(processes)
	}
	return fmt.Sprintf("%s  -  %s  -  %s  ", private, p.chroot(), most)
}

func (p *postfixSide) chroot() string {
	if _, err := os.Stat(filepath.Join(p.queue, "etc")); err == nil {
		return "y"
	}
	return "n"
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

var inClear = []postfixParameter{{name: "smtpd_tls_security_level", value: "none"}}

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
		return s, "", "it is on another machine"
	case addr.Is4():
		networks = "127.0.0.0/8"
	default:
		networks = "[::1]/128"
	}
	tls, ok := map[string][]postfixParameter{
		"smtp":          inClear,
		"smtp+starttls": {{name: "smtpd_tls_security_level", value: "encrypt"}},
		"smtps":         {{name: "smtpd_tls_security_level", value: "encrypt"}, {name: "smtpd_tls_wrappermode", value: "yes"}},
	}[u.Scheme]
	switch port := u.Port(); {
	case !ok:
		return s, "", "it is no SMTP server"
	case port == "" || port == "25":
		return s, "", "port 25 is where Postfix takes all mail, which would go round in circles"
	}
	return postfixService{name: u.Host + "  inet", columns: p.columns("n", defaultProcesses) + "smtpd", options: tls}, networks, ""
}

// warnOfTrust warns if Postfix may not tell who its clients are. On a unix
// socket it is known by its user, if it runs as the usual one.
func (p *postfixSide) warnOfTrust() {
	trust, _ := xforward.ParseTrust(p.XForward)
	trusted, want := len(p.XForward) > 0, "127.0.0.0/8"
	addr, _ := netip.ParseAddr(p.host)
	switch {
	case p.socket != "":
		want = "uid:postfix"
		if u, err := user.Lookup("postfix"); err == nil {
			uid, _ := strconv.ParseUint(u.Uid, 10, 32)
			gid, _ := strconv.ParseUint(u.Gid, 10, 32)
			trusted = trust.Unix(uint32(uid), uint32(gid))
		}
	case addr.IsLoopback():
		trusted = trust.Addr(addr)
		if addr.Is6() {
			want = "::1"
		}
	}
	if !trusted {
		p.warn("Postfix may not tell who its clients are, nor its queue id; want xforward = [%q]", want)
	}
}
