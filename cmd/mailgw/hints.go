package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mailgw/mailgw/gateway"
)

// printHints tells what to type next: a message to each listener, and where
// its mail ends up.
func printHints(w io.Writer, c *gateway.Config, addrs map[string]net.Addr) {
	fmt.Fprintln(w, "mailgw is ready. Send it a message from another terminal:")
	fmt.Fprintln(w)
	for i := range c.Listeners {
		l := &c.Listeners[i]
		server := boundTo(l, addrs)
		flag := ""
		if (l.Protocol == "lmtp") != strings.HasPrefix(server, "unix:") {
			flag = "--" + l.Protocol + " "
		}
		pattern := l.RoutePatterns()[len(l.Routes)-1] // the one for most addresses
		fmt.Fprintf(w, "  %s send %s--to %s %s\n", os.Args[0], flag, exampleOf(pattern), server)
		fmt.Fprintf(w, "      goes through %s\n", strings.Join(l.Routes[pattern], ", "))
	}
	fmt.Fprintln(w, "\nBackends:")
	fmt.Fprintln(w)
	for _, name := range c.Routed() {
		fmt.Fprintf(w, "  %s: %s\n", name, describe(c.Backends[name]))
		if path, ok := c.Backends[name].Settings["path"].(string); ok && c.Backends[name].Plugin == "maildir" {
			common, _, _ := strings.Cut(path, "{")
			if !filepath.IsAbs(common) {
				common = c.Dir + "/" + common
			}
			fmt.Fprintf(w, "      see its mail: find %s -type f\n", filepath.Dir(common+"x"))
		}
	}
	fmt.Fprintln(w, "\nCtrl-C ends it.")
}

// boundTo returns the address of a listener, with the port that port 0 became.
func boundTo(l *gateway.ListenerConfig, addrs map[string]net.Addr) string {
	if tcp, ok := addrs[l.Name].(*net.TCPAddr); ok {
		return "tcp:" + tcp.String()
	}
	return l.Address
}

// exampleOf returns an address that a pattern matches.
func exampleOf(pattern string) string {
	local, domain := "you", "example.org"
	if at := strings.LastIndexByte(pattern, '@'); at >= 0 {
		if l := pattern[:at]; l != "" && l != "*" {
			local = l
		}
		if d := pattern[at+1:]; d != "*" {
			domain = d
		}
	} else if pattern != "*" {
		return pattern // postmaster
	}
	return local + "@" + domain
}

// describe names the plugin of a backend and, if it is one that ships, its
// settings. Those of others may hold secrets.
func describe(b gateway.BackendConfig) string {
	if !slices.Contains(shippedNames(), b.Plugin) {
		return fmt.Sprintf("%s, %d settings (values not shown)", b.Plugin, len(b.Settings))
	}
	words := []string{b.Plugin}
	for _, key := range slices.Sorted(maps.Keys(b.Settings)) {
		value, _ := json.Marshal(b.Settings[key]) // it went to the plugin as JSON
		words = append(words, fmt.Sprintf("%s = %s", key, value))
	}
	return strings.Join(words, ", ")
}
