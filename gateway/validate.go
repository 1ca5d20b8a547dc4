package gateway

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mailgw/mailgw/internal/settings"
	"github.com/mailgw/mailgw/internal/smtp"
	"github.com/mailgw/mailgw/xforward"
)

// A validation checks the values of a Config and makes of them what the
// gateway works with.
type validation struct {
	*Config
	shipped  []string
	problems Problems
}

// fault adds a problem. What is wrong with a value of the wrong type beyond
// its type does not matter, so that only the first problem of a key counts.
func (v *validation) fault(key, format string, args ...any) {
	p := v.Problem(key, fmt.Sprintf(format, args...))
	if !slices.ContainsFunc(v.problems, func(other Problem) bool { return other.File == p.File && other.Key == key }) {
		v.problems = append(v.problems, p)
	}
}

func (v *validation) config() {
	v.hostname()
	v.identity()
	if v.ShutdownTimeout < 0 {
		v.fault("shutdown_timeout", "%v is negative", v.ShutdownTimeout)
	}
	if v.PluginDirectory != "" {
		v.PluginDirectory = v.directory("plugin_directory", v.PluginDirectory)
	}
	v.oneOf("log.level", v.Log.Level, "debug", "info", "warn", "error")
	v.oneOf("log.format", v.Log.Format, "text", "json")
	v.Spool.Directory = v.directory("spool.directory", v.Spool.Directory)
	if least := settings.Size(1 << 20); v.Spool.Memory < least {
		v.fault("spool.memory", "%v is less than %v; envelopes take some of it", v.Spool.Memory, least)
	}
	for _, name := range slices.Sorted(maps.Keys(v.Backends)) {
		v.Backends[name] = v.backend(settings.Join("backend", name), name, v.Backends[name])
	}
	for _, name := range v.inOrder("named_routes", v.NamedRoutes) {
		key := settings.Join("named_routes", name)
		if !goodName.MatchString(name) {
			v.fault(key, "%q is no name: %s", name, nameWanted)
		}
		v.route(key, v.NamedRoutes[name])
	}
	if len(v.Listeners) == 0 {
		v.fault("listener", "there is none; want at least one [[listener]]")
	}
	for i := range v.Listeners {
		key := fmt.Sprintf("listener[%d]", i)
		v.listener(key, &v.Listeners[i])
		v.unique(key, i)
	}
	v.passing()
}

// passing finds routes in which nobody is left to pass mail on to.
func (v *validation) passing() {
	ends := func(routes map[string][]string) {
		for pattern, route := range routes {
			if len(route) == 0 {
				continue
			}
			if last := route[len(route)-1]; v.Backends[last].OnFailure == "pass" {
				v.fault(settings.Join("backend", last)+".on_failure", "\"pass\", but it is the last one in the route of %q", pattern)
			}
		}
	}
	ends(v.NamedRoutes)
	for _, l := range v.Listeners {
		ends(l.Routes)
	}
}

// path makes a path of the file absolute.
func (v *validation) path(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(v.Dir, path)
}

func (v *validation) directory(key, path string) string {
	path = v.path(path)
	if err := checkDirectory(path); err != nil {
		v.fault(key, "%v", err)
	}
	return path
}

// checkDirectory checks that files can be made in a directory.
func checkDirectory(path string) error {
	if info, err := os.Stat(path); err != nil {
		return err
	} else if !info.IsDir() {
		return fmt.Errorf("%s is no directory", path)
	} else if err := unix.Access(path, unix.W_OK|unix.X_OK); err != nil {
		return fmt.Errorf("user %s cannot write to %s: %w", userName(), path, err)
	}
	return nil
}

func (v *validation) oneOf(key, value string, words ...string) {
	if !slices.Contains(words, value) {
		last := len(words) - 1
		v.fault(key, "want %s or %s, found %q", strings.Join(words[:last], ", "), words[last], value)
	}
}

func (v *validation) hostname() {
	if v.Hostname == "" {
		var err error
		if v.Hostname, err = os.Hostname(); err != nil {
			v.fault("hostname", "%v", err)
			return
		}
	}
	if err := checkHost(v.Hostname); err != nil {
		v.fault("hostname", "%q: %v", v.Hostname, err)
	}
}

// checkHost checks a domain or an address literal.
func checkHost(name string) error {
	_, err := smtp.CheckMailbox("postmaster@"+name, false)
	return err
}

// Names stand in keys, in logs and in the names of files.
var goodName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$`)

const nameWanted = "want up to 63 letters, digits, _ and -"

func (v *validation) backend(key, name string, b BackendConfig) BackendConfig {
	if !goodName.MatchString(name) {
		v.fault(key, "%q is no name: %s", name, nameWanted)
	}
	switch {
	case b.Plugin == "":
		v.fault(key+".plugin", "is missing; want %s", v.pluginsWanted())
	case b.Attached() != "":
		b.Plugin = attachedPrefix + v.path(b.Attached())
		if len(b.Args) > 0 || len(b.Env) > 0 {
			v.fault(key+".plugin", "args and env are for programs that mailgw starts")
		}
	case strings.Contains(b.Plugin, "/"):
		b.Plugin = v.path(b.Plugin)
		if info, err := os.Stat(b.Plugin); err != nil {
			v.fault(key+".plugin", "%v", err)
		} else if !info.Mode().IsRegular() || unix.Access(b.Plugin, unix.X_OK) != nil {
			v.fault(key+".plugin", "%s is no program that may be run", b.Plugin)
		}
	case !slices.Contains(v.shipped, b.Plugin):
		v.fault(key+".plugin", "no plugin %q ships; want %s%s", b.Plugin, v.pluginsWanted(), settings.DidYouMean(b.Plugin, v.shipped))
	}
	if slices.Contains(v.shipped, b.Plugin) && len(b.Args) > 0 {
		v.fault(key+".args", "is for programs of your own; %s takes settings", b.Plugin)
	}
	for name := range b.Env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			v.fault(settings.Join(key+".env", name), "%q is no name of a variable", name)
		}
	}
	v.program(key, &b)
	if b.Timeout <= 0 {
		v.fault(key+".timeout", "%v is not above zero", b.Timeout)
	}
	switch {
	case b.Instances < 1:
		v.fault(key+".instances", "%d is less than 1", b.Instances)
	case b.Instances > 1 && b.Attached() != "":
		v.fault(key+".instances", "is for programs that the gateway starts")
	}
	v.oneOf(key+".on_failure", b.OnFailure, "tempfail", "pass", "reject")
	v.notNegative(key, map[string]int{"recipients_per_transaction": b.RecipientsPerTransaction, "transactions": b.Transactions, "poison_crashes": b.PoisonCrashes, "replace_open_files": b.ReplaceOpenFiles})
	if b.ShadowOf != "" {
		v.known(key+".shadow_of", b.ShadowOf, nil)
		if slices.Contains(v.inRoutes(), name) {
			v.fault(key+".shadow_of", "a shadow decides nothing, but this one stands in a route")
		}
		switch of := v.Backends[b.ShadowOf]; {
		case b.ShadowOf == name || of.ShadowOf != "":
			v.fault(key+".shadow_of", "%q is a shadow itself", b.ShadowOf)
		case slices.ContainsFunc(slices.Sorted(maps.Keys(v.Backends)), func(other string) bool { return other < name && v.Backends[other].ShadowOf == b.ShadowOf }):
			v.fault(key+".shadow_of", "%q has a shadow already", b.ShadowOf)
		}
	}
	if b.ShadowShare <= 0 || b.ShadowShare > 100 {
		v.fault(key+".shadow_share", "%v is no share in percent; want more than 0, and 100 at most", b.ShadowShare)
	}
	switch route, there := v.NamedRoutes[b.PoisonRoute]; {
	case b.PoisonRoute == "":
	case !there:
		v.fault(key+".poison_route", "there is no %q in [named_routes]", b.PoisonRoute)
	case slices.Contains(route, name):
		v.fault(key+".poison_route", "the route %q leads to this backend again", b.PoisonRoute)
	}
	return b
}

func (v *validation) pluginsWanted() string {
	return strings.Join(v.shipped, ", ") + " or the path, with a slash, of a program"
}

func (v *validation) notNegative(key string, numbers map[string]int) {
	for name, n := range numbers {
		if n < 0 {
			v.fault(key+"."+name, "%d is negative", n)
		}
	}
}

// unique finds what listener i has in common with one before it.
func (v *validation) unique(key string, i int) {
	l := &v.Listeners[i]
	for j, other := range v.Listeners[:i] {
		if l.Name == other.Name && l.Name != "" {
			v.fault(key+".name", "%q is the name of listener[%d] too", l.Name, j)
		}
		if l.Address == other.Address && !strings.HasSuffix(l.Address, ":0") {
			v.fault(key+".address", "%q is the address of listener[%d] too", l.Address, j)
		}
	}
}

func (v *validation) listener(key string, l *ListenerConfig) {
	if l.Name == "" {
		v.fault(key+".name", "is missing; %s", nameWanted)
	} else if !goodName.MatchString(l.Name) {
		v.fault(key+".name", "%q is no name: %s", l.Name, nameWanted)
	}
	v.address(key, l)
	v.oneOf(key+".protocol", l.Protocol, "smtp", "lmtp")
	if l.OneRoute && l.Protocol == "lmtp" {
		v.fault(key+".one_route", "is for smtp only; with lmtp each recipient has its own answer anyway")
	}
	v.oneOf(key+".unknown_parameters", l.UnknownParameters, "refuse", "keep")
	v.oneOf(key+".bare_newlines", l.BareNewlines, "refuse", "pass")
	v.oneOf(key+".unauthorized_pipelining", l.UnauthorizedPipelining, "refuse", "pass")
	v.tls(key+".tls", &l.TLS)
	if l.RequireTLS && l.TLS.Mode == "off" {
		v.fault(key+".require_tls", "there is no TLS: tls.mode is off")
	}
	v.auth(key, l)
	for i, name := range l.Ask {
		v.known(fmt.Sprintf("%s.ask[%d]", key, i), name, l.Ask[:i])
	}
	if l.OfferRequireTLS && l.TLS.Mode == "off" {
		v.fault(key+".offer_requiretls", "there is no TLS: tls.mode is off")
	}
	v.limits(key+".limits", l.Limits)
	for i, r := range l.Rates {
		v.rate(fmt.Sprintf("%s.rate[%d]", key, i), r)
	}
	l.trust = v.trust(key+".xforward", l.XForward)
	l.xclientTrust = v.trust(key+".xclient", l.XClient)
	l.proxyTrust = v.trust(key+".proxy", l.Proxy)
	for i, peer := range l.Proxy {
		if strings.HasPrefix(peer, "cert:") {
			v.fault(fmt.Sprintf("%s.proxy[%d]", key, i), "%q: a proxy is known before it can show a certificate", peer)
		}
	}
	l.senders = v.access(key+".senders", l.Senders)
	l.recipients = v.access(key+".recipients", l.Recipients)
	l.routes = v.routes(key+".routes", l.Routes)
}

func (v *validation) trust(key string, peers []string) xforward.Trust {
	for i, peer := range peers {
		if _, err := xforward.ParseTrust([]string{peer}); err != nil {
			v.fault(fmt.Sprintf("%s[%d]", key, i), "%v", err)
		}
	}
	trust, _ := xforward.ParseTrust(peers)
	return trust
}

func (v *validation) tls(key string, t *TLSConfig) {
	v.oneOf(key+".mode", t.Mode, "off", "starttls", "implicit")
	v.oneOf(key+".min_version", t.MinVersion, "1.2", "1.3")
	v.oneOf(key+".client_certificates", t.ClientCertificates, "ignore", "ask", "require")
	for _, files := range [][]string{t.Certificates, t.Keys} {
		for i := range files {
			files[i] = v.path(files[i])
		}
	}
	if t.ClientCA != "" {
		t.ClientCA = v.path(t.ClientCA)
	}
	switch {
	case t.Mode == "off":
		for name, meant := range map[string]bool{
			"certificates":        len(t.Certificates) > 0,
			"keys":                len(t.Keys) > 0,
			"min_version":         t.MinVersion != "1.2",
			"client_certificates": t.ClientCertificates != "ignore",
			"client_ca":           t.ClientCA != "",
		} {
			if meant {
				v.fault(key+"."+name, "there is no TLS: tls.mode is off")
			}
		}
	case len(t.Certificates) == 0:
		v.fault(key+".certificates", "is missing; TLS wants at least one")
	case len(t.Keys) > 0 && len(t.Keys) != len(t.Certificates):
		v.fault(key+".keys", "%d keys for %d certificates; want as many, in the same order, or none", len(t.Keys), len(t.Certificates))
	default:
		_, err := t.load()
		if f, ok := errors.AsType[tlsFault](err); ok {
			v.fault(key+"."+f.key, "%v", f.err)
		}
	}
}

func (v *validation) auth(key string, l *ListenerConfig) {
	for i, name := range l.Auth.Mechanisms {
		key := fmt.Sprintf("%s.auth.mechanisms[%d]", key, i)
		v.oneOf(key, name, authMechanisms...)
		if slices.Contains(l.Auth.Mechanisms[:i], name) {
			v.fault(key, "%q stands in the list already", name)
		}
	}
	l.tlsSenders = v.senders(key+".tls_senders", l.TLSSenders)
	l.authSenders = v.senders(key+".auth_senders", l.AuthSenders)
	if len(l.TLSSenders) > 0 && l.TLS.Mode == "off" {
		v.fault(key+".tls_senders", "there is no TLS: tls.mode is off")
	}
}

// senders returns the set of senders that match a list of patterns.
func (v *validation) senders(key string, list []string) patterns[bool] {
	set := patterns[bool]{}
	for i, text := range list {
		key := fmt.Sprintf("%s[%d]", key, i)
		if err := set.add(text, v.place(key), true); err != nil {
			v.fault(key, "%q: %v", text, err)
		}
	}
	return set
}

func (v *validation) rate(key string, r RateConfig) {
	v.oneOf(key+".by", r.By, "client", "user", "sender", "sender_domain", "recipient", "recipient_domain")
	v.notNegative(key, map[string]int{"messages": r.Messages, "recipients": r.Recipients, "at_once": r.AtOnce})
	if r.Messages == 0 && r.Recipients == 0 && r.Bytes == 0 && r.AtOnce == 0 {
		v.fault(key, "limits nothing; want messages, recipients, bytes or at_once")
	}
	if longest := 30 * 24 * time.Hour; r.Per < time.Second || r.Per > longest {
		v.fault(key+".per", "%v is not between 1s and %v", r.Per, longest)
	}
	for name, prefix := range map[string]struct{ bits, most int }{
		"ipv4_prefix": {r.IPv4Prefix, 32},
		"ipv6_prefix": {r.IPv6Prefix, 128},
	} {
		if _, given := v.lines[key+"."+name]; given && r.By != "client" {
			v.fault(key+"."+name, "is for by = \"client\" only")
		} else if prefix.bits < 1 || prefix.bits > prefix.most {
			v.fault(key+"."+name, "%d is not between 1 and %d", prefix.bits, prefix.most)
		}
	}
}

func (v *validation) limits(key string, l LimitsConfig) {
	v.notNegative(key, map[string]int{
		"header_fields":        l.HeaderFields,
		"hops":                 l.Hops,
		"mime_parts":           l.MIMEParts,
		"recipients":           l.Recipients,
		"connections":          l.Connections,
		"connections_per_peer": l.ConnectionsPerPeer,
		"bad_commands":         l.BadCommands,
	})
	for name, d := range map[string]time.Duration{
		"command_timeout": l.CommandTimeout,
		"message_timeout": l.MessageTimeout,
		"ask_timeout":     l.AskTimeout,
		"answer_timeout":  l.AnswerTimeout,
		"session_timeout": l.SessionTimeout,
	} {
		if d <= 0 {
			v.fault(key+"."+name, "%v is not above zero", d)
		}
	}
	for name, delay := range map[string]struct{ is, longest time.Duration }{
		"error_delay": {l.ErrorDelay, longestErrorDelay},
		"greet_delay": {l.GreetDelay, time.Minute}, // clients wait 5 minutes: RFC 5321, section 4.5.3.2.1
	} {
		if delay.is < 0 || delay.is > delay.longest {
			v.fault(key+"."+name, "%v is not between 0s and %v", delay.is, delay.longest)
		}
	}
	if l.MIMEDepth < 0 || l.MIMEDepth > maxMIMEDepth {
		v.fault(key+".mime_depth", "%d is not between 0 and %d", l.MIMEDepth, maxMIMEDepth)
	}
	// RFC 5321, section 4.5.3.1.4, and what a connection may cost.
	if l.CommandLine < 512 || l.CommandLine > 64<<10 {
		v.fault(key+".command_line", "%v is not between 512 and 64KiB", l.CommandLine)
	}
}
