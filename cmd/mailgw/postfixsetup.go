package main

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
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
	if addr, _ := netip.ParseAddr(p.host); p.host == "" || p.host == "localhost" || addr.IsUnspecified() {
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
	case p.TLS.ClientCertificates == "require":
		return "which has no certificate for it"
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
		at := strings.LastIndexByte(pattern, '@')
		if domain := pattern[at+1:]; at >= 0 && domain != "*" && !slices.Contains(domains, domain) {
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
		trusted = trust.Addr(addr) || slices.ContainsFunc(p.XForward, func(peer string) bool { return strings.HasPrefix(peer, "cert:") })
		if addr.Is6() {
			want = "::1"
		}
	}
	if !trusted {
		p.warn("Postfix may not tell who its clients are, nor its queue id; want xforward = [%q]", want)
	}
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
