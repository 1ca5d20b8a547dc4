package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

const mailgwConfig = `hostname = "gateway.example"
spool.directory = "."
[[listener]]
name = "lmtp"
address = "unix:lmtp.sock"
protocol = "lmtp"
limits.connections = 0
routes = { "*" = [%[1]s] }
[[listener]]
name = "smtp"
address = "tcp:%[2]s"
protocol = "smtp"
limits.connections = 0
routes = { "*" = [%[1]s] }
[backend.reader]
plugin = %[3]q
settings.pprof = "reader.pprof"
[backend.filter]
plugin = %[3]q
settings.pass = true
settings.pprof = "filter.pprof"
`

func startMailgw(all programs, dir string) (*server, error) {
	return startMailgwBy(all, dir, `"reader"`)
}

func startMailgwWithTwo(all programs, dir string) (*server, error) {
	return startMailgwBy(all, dir, `"filter", "reader"`)
}

func startMailgwBy(all programs, dir, route string) (*server, error) {
	smtp, err := freePort("smtp")
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "gateway.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, mailgwConfig, route, smtp.address, all.plugin), 0o600); err != nil {
		return nil, err
	}
	s, err := newServer(all, dir)
	if err != nil {
		return nil, err
	}
	s.plugins = true
	s.profiles = dir
	return s, s.launch(dir, exec.Command(all.mailgw, "serve", "--config", config, "--pprof", "unix:gateway.pprof"), lmtpAt(dir, "lmtp.sock"), smtp)
}
