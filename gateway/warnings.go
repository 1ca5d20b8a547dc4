package gateway

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mailgw/mailgw/internal/settings"
)

// Warnings returns what is allowed but hardly meant.
func (c *Config) Warnings() Problems {
	w := warnings{Config: c}
	var fs unix.Statfs_t
	if err := unix.Statfs(c.Spool.Directory, &fs); err == nil && fs.Type == unix.TMPFS_MAGIC {
		w.warn("spool.directory", "%s is in memory, so that spool.memory is no bound; choose a directory on a disk", c.Spool.Directory)
	}
	for i := range c.Listeners {
		w.listener(fmt.Sprintf("listener[%d]", i), &c.Listeners[i])
	}
	for name, b := range c.Backends {
		w.backend(settings.Join("backend", name), name, b)
	}
	c.Sort(w.problems)
	return w.problems
}

type warnings struct {
	*Config
	problems Problems
}

func (w *warnings) warn(key, format string, args ...any) {
	w.problems = append(w.problems, w.Problem(key, fmt.Sprintf(format, args...)))
}

func (w *warnings) listener(key string, l *ListenerConfig) {
	onUnix := strings.HasPrefix(l.Address, "unix:")
	// PROXY and XCLIENT bring clients with addresses to a unix socket, too.
	addresses := !onUnix || len(l.Proxy) > 0 || len(l.XClient) > 0
	certificates := l.TLS.Mode != "off" && l.TLS.ClientCertificates != "ignore"
	if l.TLS.Mode == "starttls" && !l.RequireTLS && l.TLS.ClientCertificates == "require" {
		w.warn(key+".tls.client_certificates", "a client that does not say STARTTLS needs none; require_tls makes it")
	}
	users := onUnix && len(l.Proxy) == 0
	w.peers(key+".xforward", l.XForward, addresses, users, certificates)
	w.peers(key+".xclient", l.XClient, !users, users, certificates)
	w.peers(key+".proxy", l.Proxy, !onUnix, onUnix, false)
	for i, r := range l.Rates {
		key := fmt.Sprintf("%s.rate[%d]", key, i)
		if most := l.Limits.MessageSize; r.Bytes > 0 && (most == 0 || most > r.Bytes) {
			w.warn(key+".bytes", "a larger message counts as %v only; want limits.message_size, or more", r.Bytes)
		}
		switch {
		case r.By == "client" && onUnix && len(l.XForward)+len(l.XClient)+len(l.Proxy) == 0:
			w.warn(key+".by", "no client has an address here: it is a unix socket, and nobody may tell whom a message came from")
		case r.By == "user" && len(l.Ask)+len(l.XClient) == 0:
			w.warn(key+".by", "no client is ever authenticated here: no backend in ask can tell who it is")
		}
	}
	if !l.senders.permits("") && !slices.Contains(l.Senders.Deny, "<>") {
		w.warn(key+".senders", `bounces are refused, since no pattern allows their null sender; add "<>" to allow`)
	}
	// lmtp_data_done_timeout and smtp_data_done_timeout of Postfix.
	if l.Limits.AnswerTimeout >= 10*time.Minute {
		w.warn(key+".limits.answer_timeout", "by default Postfix waits 10 minutes only, and then sends the message again")
	}
}

// peers finds those who never come, given what those who come can have, and
// those who are too many.
func (w *warnings) peers(key string, peers []string, addresses, users, certificates bool) {
	for i, peer := range peers {
		key := fmt.Sprintf("%s[%d]", key, i)
		prefix, err := netip.ParsePrefix(peer)
		_, errAddr := netip.ParseAddr(peer)
		switch isNetwork := err == nil || errAddr == nil; {
		case strings.HasPrefix(peer, "cert:"):
			if !certificates {
				w.warn(key, "no client shows a certificate; want TLS, with client_certificates ask or require")
			}
		case isNetwork && !addresses:
			w.warn(key, "%s never connects to a unix socket; want unix, uid: or gid:", peer)
		case !isNetwork && !users:
			w.warn(key, "%s never connects where clients have addresses; want those, networks or cert:", peer)
		case err == nil && prefix.Bits() == 0:
			w.warn(key, "%s lets every client say that it is somebody else", peer)
		}
	}
}

func (w *warnings) backend(key, name string, b BackendConfig) {
	_, given := w.lines[key+".timeout"]
	for _, l := range w.Listeners {
		if given && l.uses(name) && b.Timeout > l.Limits.AnswerTimeout {
			w.warn(key+".timeout", "listener %s answers after %v, its limits.answer_timeout", l.Name, l.Limits.AnswerTimeout)
		}
	}
	if !slices.Contains(w.Routed(), name) {
		w.warn(key, "no route and no ask names it, so that serve does not start it")
	}
}

// uses reports whether a backend stands in a route.
func (l *ListenerConfig) uses(backend string) bool {
	for _, route := range l.Routes {
		if slices.Contains(route, backend) {
			return true
		}
	}
	return false
}
