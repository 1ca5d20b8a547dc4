package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/gateway"
	"github.com/mailgw/mailgw/plugins"
)

func checkCommand() *cobra.Command {
	var config, smuggling string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and print what it amounts to",
		Long: `Check reads the configuration, starts the plugin of each backend once, and prints
the listeners, their routes, the pattern that decides first at the top, and the
backends. Most keys are printed only if their values are not the defaults, which
gateway.toml has. It opens no listener, and may run beside the
gateway. What files and sockets the user may use decides too: run it as the user
that serve is started as. If that is root, it becomes the user of the configuration,
as serve does.

All problems are printed at once on standard error, each with its file, line and
key, those too that plugins find in their settings. What depends on others comes
after them: a plugin is only started if its own table has no problem, it judges its
settings only if it knows them all and each has the right type, and whether it can
do what a listener promises (dsn, offer_requiretls) is asked when all have started.
Warnings change nothing in the exit code.

With --smuggling it then tests whether the targets of all backends whose plugin is
relay see the end of a message where there is none: whoever writes a message to
such a server can write another one into it, with a sender of his choice. Each
target gets some twenty messages to ADDRESS, from the null sender, with one octet
sequence each that a server might take for the end.

Exit codes:
  0   the configuration is good, and no target splits messages
  64  wrong usage
  75  a target could not be tested to the end: it does not answer, or does not
      take the address
  76  a target splits messages, whatever else
  78  the configuration has a problem, a backend does not start, or there is no
      target to test`,
		Example: `  mailgw check
  runuser -u mailgw -- mailgw check --config /etc/mailgw/gateway.toml
  mailgw check --smuggling postmaster@example.org`,
		Args: configByFlag,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkAddress(smuggling); cmd.Flags().Changed("smuggling") && err != nil {
				return fmt.Errorf("--smuggling: %w", err)
			}
			return check(cmd.Context(), config, smuggling, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	configFlag(cmd, &config)
	cmd.Flags().StringVar(&smuggling, "smuggling", "", "test the targets of relays with messages to this address")
	return cmd
}

// check checks a configuration, and the targets of its relays if smuggling is an
// address.
func check(ctx context.Context, config, smuggling string, stdout, stderr io.Writer) error {
	c, problems, err := loadConfig(config, stderr)
	if err != nil {
		return err
	}
	summary, err := summarize(ctx, c, problems, gateway.NewLogger(gateway.LogConfig{Level: "warn"}, stderr))
	if err != nil {
		return exitError{exitConfig, err}
	}
	io.WriteString(stdout, summary)
	if smuggling != "" {
		return checkSmuggling(ctx, c, smuggling, stdout)
	}
	return nil
}

// summarize starts all backends and tells what holds. They have ended when it
// returns: who reads the summary may leave before its end, and this process with him.
func summarize(ctx context.Context, c *gateway.Config, problems gateway.Problems, log *slog.Logger) (string, error) {
	hosts, err := startBackends(ctx, c, slices.Collect(maps.Keys(c.Backends)), problems, log)
	if err != nil {
		return "", err
	}
	defer hosts.close(log)
	if _, err := gateway.New(c, hosts.backends(), log); err != nil {
		return "", err
	}
	w := &strings.Builder{}
	fmt.Fprintf(w, "hostname %s, shutdown_timeout %v\n", c.Hostname, c.ShutdownTimeout)
	if user := c.Credential; user != nil {
		fmt.Fprintf(w, "runs as %s\n", userText(c.User, user))
	}
	fmt.Fprintf(w, "spool: memory %v, threshold %v, directory %s\n", c.Spool.Memory, c.Spool.Threshold, c.Spool.Directory)
	for i := range c.Listeners {
		printListener(w, &c.Listeners[i], c.AuthOffered(&c.Listeners[i], hosts.backends()))
	}
	for _, name := range slices.Sorted(maps.Keys(c.NamedRoutes)) {
		fmt.Fprintf(w, "named route %s -> %s\n", name, strings.Join(c.NamedRoutes[name], ", "))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Backends)) {
		printBackend(w, name, c.Backends[name], hosts[name].Host)
	}
	return w.String(), nil
}

// printListener prints what holds for a listener, which offers auth at best: who
// may do what, and what is not as it is by default.
func printListener(w io.Writer, l *gateway.ListenerConfig, auth []string) {
	var defaults gateway.ListenerConfig
	defaults.SetDefaults()
	fmt.Fprintf(w, "listener %s: %s on %s\n", l.Name, l.Protocol, l.Address)
	if path, ok := strings.CutPrefix(l.Address, "unix:"); ok && path[0] != '@' {
		fmt.Fprintf(w, "  mode %04o, owner %s, group %s\n", l.Mode, cmp.Or(l.Owner, "unchanged"), cmp.Or(l.Group, "unchanged"))
	}
	if l.TLS.Mode == "off" {
		fmt.Fprintln(w, "  tls off")
	} else {
		fmt.Fprintf(w, "  tls %s, required %t, at least %s, %d certificates, client certificates: %s, of %s\n",
			l.TLS.Mode, l.RequireTLS || l.TLS.Mode == "implicit", l.TLS.MinVersion, len(l.TLS.Certificates),
			l.TLS.ClientCertificates, cmp.Or(l.TLS.ClientCA, "any CA"))
	}
	fmt.Fprintf(w, "  xforward from %s\n", cmp.Or(strings.Join(l.XForward, ", "), "nobody"))
	printList(w, "xclient from", l.XClient)
	printList(w, "proxy from", l.Proxy)
	printList(w, "ask", l.Ask)
	fmt.Fprintln(w, "  auth "+strings.Join(append([]string{cmp.Or(strings.Join(auth, " "), "not offered")}, changed(l.Auth, defaults.Auth)...), ", "))
	printList(w, "with", changed(*l, defaults, "name", "address", "protocol", "mode", "owner", "group", "require_tls"))
	printList(w, "tls_senders", l.TLSSenders)
	printList(w, "auth_senders", l.AuthSenders)
	printAccess(w, "senders", l.Senders)
	printAccess(w, "recipients", l.Recipients)
	printList(w, "limits", append([]string{"message_size " + limit(l.Limits.MessageSize)}, changed(l.Limits.InForce(), defaults.Limits, "message_size")...))
	for _, r := range l.Rates {
		fmt.Fprintf(w, "  rate %v\n", r)
	}
	fmt.Fprintln(w, "  routes")
	width := 0
	for pattern := range l.Routes {
		width = max(width, len(pattern))
	}
	for _, pattern := range l.RoutePatterns() {
		fmt.Fprintf(w, "    %-*s  -> %s\n", width, pattern, strings.Join(l.Routes[pattern], ", "))
	}
}

func printList(w io.Writer, key string, list []string) {
	if len(list) > 0 {
		fmt.Fprintf(w, "  %s %s\n", key, strings.Join(list, ", "))
	}
}

// changed returns the keys of a table and their values, as far as they are single
// values and not those of defaults, but for those that are printed elsewhere.
func changed(table, defaults any, elsewhere ...string) (words []string) {
	then := reflect.ValueOf(defaults)
	for field, value := range reflect.ValueOf(table).Fields() {
		key := field.Tag.Get("toml")
		switch value.Kind() {
		case reflect.Struct, reflect.Slice, reflect.Map, reflect.Pointer:
			continue
		}
		if key != "" && !slices.Contains(elsewhere, key) && !value.Equal(then.FieldByIndex(field.Index)) {
			words = append(words, key+" "+limit(value.Interface()))
		}
	}
	return words
}

// printAccess prints who is allowed and who is denied, if that is restricted.
func printAccess(w io.Writer, who string, a gateway.AccessConfig) {
	restricted := false
	for _, list := range []struct {
		name    string
		entries []string
	}{
		{"allow", a.Allow},
		{"allow_file", []string{a.AllowFile}},
		{"deny", a.Deny},
		{"deny_file", []string{a.DenyFile}},
	} {
		if entries := strings.Join(list.entries, ", "); entries != "" {
			fmt.Fprintf(w, "  %s.%s %s\n", who, list.name, entries)
			restricted = true
		}
	}
	if restricted {
		fmt.Fprintf(w, "  %s.reply %s\n", who, a.Reply)
	}
}

func printBackend(w io.Writer, name string, b gateway.BackendConfig, h *plugins.Host) {
	fmt.Fprintf(w, "backend %s: %s\n", name, describe(b))
	var defaults gateway.BackendConfig
	defaults.SetDefaults()
	printList(w, "starts, settings accepted,", append([]string{"timeout " + b.Timeout.String(), "on_failure " + b.OnFailure},
		changed(b, defaults, "plugin", "checksum", "timeout", "on_failure", "shadow_of", "shadow_share")...))
	printSandbox(w, b)
	fmt.Fprintf(w, "  can do %s; may edit %v\n", capabilities(h.Capabilities()), h.MayEdit())
	if h.IsEffectFree() {
		fmt.Fprintln(w, "  free of effects")
	}
	if b.ShadowOf != "" {
		fmt.Fprintf(w, "  shadow of %s, for %g%% of its mail\n", b.ShadowOf, b.ShadowShare)
	}
	printList(w, "diverts to", h.DivertsTo())
	var needs []string
	for _, n := range h.Needs() {
		needs = append(needs, strconv.Quote(n)) // since they are a stranger's words
	}
	printList(w, "needs", needs)
	var answers []string
	for _, t := range backends.Topics() {
		if h.Answers(t) {
			answers = append(answers, t.String())
		}
	}
	if answers != nil {
		fmt.Fprintf(w, "  answers questions about %s\n", strings.Join(answers, ", "))
	}
}

// printSandbox prints what the plugin is kept in, as far as there is something.
func printSandbox(w io.Writer, b gateway.BackendConfig) {
	var words []string
	add := func(there bool, format string, args ...any) {
		if there {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	s := b.Sandbox
	add(b.Checksum != "", "program %s", b.Checksum)
	if user := s.Credential; user != nil {
		add(true, "%s", userText(s.User, user))
	}
	add(s.Directory != "", "directory %s", s.Directory)
	add(s.Memory > 0, "memory %v", s.Memory)
	add(s.OpenFiles > 0, "open_files %d", s.OpenFiles)
	add(s.Processes > 0, "processes %d", s.Processes)
	add(s.CPU > 0, "cpu %v", s.CPU)
	add(s.Confined(), "reads %s", cmp.Or(strings.Join(s.ReadPaths, " "), "nothing more"))
	add(s.Confined(), "writes %s", cmp.Or(strings.Join(s.WritePaths, " "), "nothing"))
	add(!s.NoNewPrivileges, "may gain privileges")
	add(s.BestEffort, "as far as possible")
	if words != nil {
		fmt.Fprintf(w, "  sandbox: %s\n", strings.Join(words, "; "))
	}
}

// capabilities prints what a backend can do.
func capabilities(can backends.Capabilities) string {
	if can.Relays {
		return "what its targets can"
	}
	var names []string
	for _, c := range []struct {
		name string
		can  bool
	}{
		{"8BITMIME", can.EightBitMIME},
		{"SMTPUTF8", can.SMTPUTF8},
		{"BINARYMIME", can.BinaryMIME},
		{"DSN", can.DSN},
		{"REQUIRETLS", can.RequireTLS},
	} {
		if c.can {
			names = append(names, c.name)
		}
	}
	return cmp.Or(strings.Join(names, ", "), "nothing")
}

// limit prints a value. The zero of a limit means that there is none.
func limit(v any) string {
	if _, is := v.(bool); !is && reflect.ValueOf(v).IsZero() {
		return "none"
	}
	return fmt.Sprint(v)
}

func userText(name string, ids *syscall.Credential) string {
	return fmt.Sprintf("user %s (uid %d, gid %d)", name, ids.Uid, ids.Gid)
}
