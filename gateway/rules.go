package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/settings"
	"github.com/mailgw/mailgw/internal/smtp"
)

// access says which addresses are allowed. The most exact pattern that
// matches an address decides. If none does, the address is allowed unless
// there is a list of allowed ones.
type access struct {
	rules     patterns[permission]
	allowList bool
	reply     backends.Status // for the others
}

type permission int

const (
	undecided permission = iota
	allowed
	denied
)

// add adds a pattern. Lists may say something twice, but not two things.
func (a *access) add(text, place string, says permission) error {
	if key, err := smtp.ParsePattern(text); err == nil && a.rules[key].value == says {
		return nil
	}
	return a.rules.add(text, place, says)
}

func (a *access) permits(address string) bool {
	switch a.rules.lookup(address) {
	case allowed:
		return true
	case denied:
		return false
	}
	return !a.allowList
}

func (v *validation) access(key string, config AccessConfig) access {
	a := access{
		rules:     patterns[permission]{},
		allowList: len(config.Allow) > 0 || config.AllowFile != "",
	}
	var err error
	if a.reply, err = parseReply(config.Reply); err != nil {
		v.fault(key+".reply", "%q: %v", config.Reply, err)
	}
	v.list(key+".allow", config.Allow, config.AllowFile, &a, allowed)
	v.list(key+".deny", config.Deny, config.DenyFile, &a, denied)
	return a
}

// list adds the patterns of a list and of a file to a.
func (v *validation) list(key string, inline []string, file string, a *access, says permission) {
	for i, text := range inline {
		key := fmt.Sprintf("%s[%d]", key, i)
		if err := a.add(text, v.place(key), says); err != nil {
			v.fault(key, "%q: %v", text, err)
		}
	}
	if file == "" {
		return
	}
	file = v.path(file)
	text, err := os.ReadFile(file)
	if err != nil {
		v.fault(key+"_file", "%v", err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if err := a.add(line, fmt.Sprintf("%s:%d", file, n), says); err != nil {
			v.problems = append(v.problems, Problem{file, n, key + "_file", fmt.Sprintf("%q: %v", line, err)})
		}
	}
}

// place names the place of a key.
func (v *validation) place(key string) string {
	return fmt.Sprintf("%s:%d", v.file, v.lines.Of(key))
}

// parseReply reads a refusal.
func parseReply(text string) (backends.Status, error) {
	var r smtp.Reply
	more, err := r.Add(text)
	switch {
	case err != nil || more || r.Enhanced == "" || r.Text == "":
		return backends.Status{}, errors.New(`want a code, an enhanced code of its class and a text, such as "550 5.7.1 refused"`)
	case r.Code == 421:
		return backends.Status{}, errors.New("421 announces the end of the connection")
	}
	s := backends.NewStatus(r.Code, r.Enhanced, r.Text)
	if s.Positive() || s != s.Sanitized() {
		return backends.Status{}, errors.New("want a code from 400 to 459 or 500 to 559, and a text of up to 400 printable US-ASCII characters")
	}
	return s, nil
}

// A route is the backends that a recipient's mail goes through, in order.
// Recipients with the same *route share their transactions.
type route struct {
	name     string // of one in [named_routes]
	backends []string
}

// routes returns the routes of a listener. Those with the same backends are
// the same.
func (v *validation) routes(key string, config map[string][]string) patterns[*route] {
	if len(config) == 0 {
		v.fault(key, "is missing; want at least one, such as \"*\" = [\"NAME\"]")
	}
	routes, known := patterns[*route]{}, map[string]*route{}
	for _, pattern := range v.inOrder(key, config) {
		names, key := config[pattern], settings.Join(key, pattern)
		v.route(key, names)
		list := strings.Join(names, " ")
		if known[list] == nil {
			known[list] = &route{backends: names}
		}
		if err := routes.add(pattern, v.place(key), known[list]); err != nil {
			v.fault(key, "%v", err)
		}
	}
	return routes
}

// RoutePatterns returns the patterns of the routes, the one that decides
// first at the top.
func (l *ListenerConfig) RoutePatterns() []string {
	order := slices.SortedFunc(maps.Keys(l.routes), smtp.Pattern.Compare)
	texts := make([]string, len(order))
	for i, p := range order {
		texts[i] = l.routes[p].text
	}
	return texts
}

// Routed returns the names of the backends that are needed: those that stand
// in a route, or are asked.
func (c *Config) Routed() []string {
	names := c.inRoutes()
	for name, b := range c.Backends {
		if slices.Contains(names, b.ShadowOf) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// inRoutes returns the names that stand in a route or an ask.
func (c *Config) inRoutes() []string {
	names := slices.Concat(slices.Collect(maps.Values(c.NamedRoutes))...)
	for _, l := range c.Listeners {
		names = append(names, l.Ask...)
		for _, route := range l.Routes {
			names = append(names, route...)
		}
	}
	return names
}

// lastOf returns the names of the backends in which routes end.
func lastOf(routes map[string][]string) (names []string) {
	for _, route := range routes {
		names = append(names, route[len(route)-1])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// inOrder returns the keys of a table in the order of the file.
func (v *validation) inOrder(key string, table map[string][]string) []string {
	return slices.SortedFunc(maps.Keys(table), func(a, b string) int {
		byLine := cmp.Compare(v.lines.Of(settings.Join(key, a)), v.lines.Of(settings.Join(key, b)))
		return cmp.Or(byLine, cmp.Compare(a, b))
	})
}

func (v *validation) route(key string, names []string) {
	if len(names) == 0 {
		v.fault(key, "there is no backend in it")
	}
	for i, name := range names {
		v.known(fmt.Sprintf("%s[%d]", key, i), name, names[:i])
	}
}

// known checks a name in a list of backends, given those before it.
func (v *validation) known(key, name string, before []string) {
	if _, ok := v.Backends[name]; !ok {
		known := slices.Sorted(maps.Keys(v.Backends))
		v.fault(key, "there is no [backend.%s]%s", name, settings.DidYouMean(name, known))
	}
	if slices.Contains(before, name) {
		v.fault(key, "%q stands in the list already", name)
	}
}
