package backends

import (
	"cmp"
	"os"
)

// HostnameEnv is the variable of a plugin's environment that has the hostname
// of gateway.toml.
const HostnameEnv = "MAILGW_HOSTNAME"

// Hostname returns the name by which this host is known to mail: that of
// gateway.toml, or else of the machine.
func Hostname() (string, error) {
	machine, err := os.Hostname()
	if name := cmp.Or(os.Getenv(HostnameEnv), machine); name != "" {
		return name, nil
	}
	return "", err
}
