package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const addressWanted = "want tcp:HOST:PORT, unix:PATH or unix:@NAME"

// address checks where a listener is to listen, and that this process may
// give its socket away.
func (v *validation) address(key string, l *ListenerConfig) {
	network, address, _ := strings.Cut(l.Address, ":")
	hasPath := network == "unix" && address != "" && address[0] != '@'
	var err error
	switch {
	case l.Address == "":
		err = errors.New("is missing; " + addressWanted)
	case network == "tcp":
		err = checkTCP(address, l.Protocol)
	case hasPath:
		address = v.path(address)
		l.Address = "unix:" + address
		err = checkSocketPath(address)
	case network == "unix" && len(address) > len("@"):
		err = checkLength(address)
	default:
		err = fmt.Errorf("%q: %s", l.Address, addressWanted)
	}
	if err != nil {
		v.fault(key+".address", "%v", err)
	}

	for _, name := range []string{"mode", "owner", "group"} {
		if _, given := v.lines[key+"."+name]; given && !hasPath && err == nil {
			v.fault(key+"."+name, "is for unix:PATH only")
		}
	}
	canBind := hasPath && err == nil
	if l.Owner != "" {
		if u, err := user.Lookup(l.Owner); err != nil {
			v.fault(key+".owner", "%v", err)
		} else if canBind && u.Uid != strconv.Itoa(os.Geteuid()) && !mayChown() {
			v.fault(key+".owner", "only root may give the socket to another user, and mailgw runs as %s; leave owner out, or run it as %s", userName(), l.Owner)
		}
	}
	if l.Group != "" {
		if g, err := user.LookupGroup(l.Group); err != nil {
			v.fault(key+".group", "%v", err)
		} else if canBind && !mayGive(g.Gid, filepath.Dir(address)) {
			v.fault(key+".group", "user %s is not in group %[2]s; add it (usermod -aG %[2]s %[1]s), or let the directory give its group (chmod g+s)", userName(), l.Group)
		}
	}
}

// mayChown reports whether this process may give files to anybody.
func mayChown() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	err := unix.Capget(&header, &sets[0])
	return err == nil && sets[0].Effective&(1<<unix.CAP_CHOWN) != 0
}

// mayGive reports whether a file of this process in a directory may have a
// group. A directory with the setgid bit gives its own.
func mayGive(group, directory string) bool {
	mine, _ := os.Getgroups()
	mine = append(mine, os.Getegid())
	var dir unix.Stat_t
	if err := unix.Stat(directory, &dir); err == nil && dir.Mode&unix.S_ISGID != 0 {
		mine = append(mine, int(dir.Gid))
	}
	gid, err := strconv.Atoi(group)
	return err == nil && slices.Contains(mine, gid) || mayChown()
}

// userName names the user that this process runs as.
func userName() string {
	uid := strconv.Itoa(os.Geteuid())
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return uid
}

func checkTCP(address, protocol string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("%w; an IPv6 address stands in brackets", err)
	}
	if _, err := netip.ParseAddr(host); err != nil {
		last := host[strings.LastIndexByte(host, '.')+1:]
		switch {
		case host == "":
			return errors.New("no host; 0.0.0.0 stands for all IPv4 addresses, [::] for all addresses")
		case strings.Trim(last, "0123456789") == "" || checkHost(host) != nil:
			return fmt.Errorf("%q is neither an address nor a host name", host)
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return fmt.Errorf("%q is no port; want 0 to 65535", port)
	}
	if n == 25 && protocol == "lmtp" {
		return errors.New("LMTP must not be spoken on port 25 (RFC 2033, section 5)")
	}
	return nil
}

func checkSocketPath(path string) error {
	// The socket has this name before it is ready: see listener.open.
	if err := checkLength(path + ".new"); err != nil {
		return err
	}
	return checkDirectory(filepath.Dir(path))
}

// checkLength checks the name of a unix socket.
func checkLength(name string) error {
	var address unix.RawSockaddrUnix
	if len(name) >= len(address.Path) {
		return fmt.Errorf("%s is longer than the name of a socket may be, %d octets", name, len(address.Path)-1)
	}
	return nil
}
