package gateway

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// identity checks who this process is to run as.
func (v *validation) identity() {
	v.Credential = v.credential("", v.User, v.Group)
	if v.Credential == nil {
		return
	}
	switch euid := os.Geteuid(); {
	case euid == 0:
	case euid != int(v.Credential.Uid):
		v.fault("user", "only root can become %s, and mailgw runs as %s", v.User, userName())
	case v.Group != "" && os.Getegid() != int(v.Credential.Gid):
		v.fault("group", "only root can take the group %s, and mailgw runs with the gid %d", v.Group, os.Getegid())
	}
}

// credential returns who user and group, at the keys of these names in the table at
// path, are, and nil if there is no user or a problem.
func (v *validation) credential(path, userName, groupName string) *syscall.Credential {
	if path != "" {
		path += "."
	}
	if userName == "" {
		if groupName != "" {
			v.fault(path+"group", "is for another user, and there is no %suser", path)
		}
		return nil
	}
	uid, gid, groups, err := lookupUser(userName)
	if err != nil {
		v.fault(path+"user", "%v", err)
		return nil
	}
	if groupName != "" {
		if gid, err = lookupGroup(groupName); err != nil {
			v.fault(path+"group", "%v", err)
			return nil
		}
	} else if gid < 0 {
		v.fault(path+"group", "is missing; the user %s has no entry that tells its group", userName)
		return nil
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: groups}
}

// lookupUser returns the ids of a user by name or number, and its groups. The gid
// of a number that is nobody's is -1.
func lookupUser(name string) (uid, gid int, groups []uint32, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		n, notNumber := strconv.ParseUint(name, 10, 31)
		if notNumber != nil {
			return 0, 0, nil, err
		}
		if u, err = user.LookupId(name); err != nil {
			return int(n), -1, nil, nil
		}
	}
	uid, uidErr := strconv.Atoi(u.Uid)
	gid, gidErr := strconv.Atoi(u.Gid)
	ids, err := u.GroupIds()
	for _, id := range ids {
		n, numberErr := strconv.ParseUint(id, 10, 32)
		err = errors.Join(err, numberErr)
		groups = append(groups, uint32(n))
	}
	return uid, gid, groups, errors.Join(uidErr, gidErr, err)
}

// lookupGroup returns the id of a group by name or number.
func lookupGroup(name string) (int, error) {
	g, err := user.LookupGroup(name)
	if err == nil {
		return strconv.Atoi(g.Gid)
	}
	if n, notNumber := strconv.ParseUint(name, 10, 31); notNumber == nil {
		return int(n), nil
	}
	return 0, err
}

// Confined reports whether there are files that the plugin may not use although
// its user may.
func (s SandboxConfig) Confined() bool { return !slices.Contains(s.WritePaths, "/") }

// sandbox checks what a plugin is kept in.
func (v *validation) sandbox(key string, s *SandboxConfig) {
	s.Credential = v.credential(key, s.User, s.Group)
	if s.Directory != "" {
		s.Directory = v.path(s.Directory)
		if info, err := os.Stat(s.Directory); err != nil {
			v.fault(key+".directory", "%v", err)
		} else if !info.IsDir() {
			v.fault(key+".directory", "%s is no directory", s.Directory)
		}
	}
	v.notNegative(key, map[string]int{"open_files": s.OpenFiles, "processes": s.Processes})
	if s.CPU < 0 || s.CPU%time.Second != 0 {
		v.fault(key+".cpu", "%v is not a number of whole seconds", s.CPU)
	}
	if s.Processes > 0 && s.User == "" {
		v.fault(key+".processes", "counts all processes of a user; give the plugin a user of its own")
	}
	v.sandboxPaths(key+".read_paths", s.ReadPaths, s.BestEffort)
	v.sandboxPaths(key+".write_paths", s.WritePaths, s.BestEffort)
	switch {
	case s.Confined() && !s.NoNewPrivileges:
		v.fault(key+".no_new_privileges", "is false, but read_paths and write_paths take it")
	case !s.Confined() && !slices.Contains(s.ReadPaths, "/"):
		v.fault(key+".read_paths", "what may be written may be read; give write_paths, too, if only []")
	}
}

// sandboxPaths makes paths absolute. They have to be there, unless a warning of the
// plugin's start will do. That mailgw itself cannot look is no problem yet: the
// plugin may be another user.
func (v *validation) sandboxPaths(key string, paths []string, bestEffort bool) {
	for i := range paths {
		paths[i] = v.path(paths[i])
		_, err := os.Stat(paths[i])
		if !bestEffort && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) {
			v.fault(key, "%v", err)
		}
	}
}

// program checks what there is only for programs that mailgw starts, or only for
// those that do not ship with it.
func (v *validation) program(key string, b *BackendConfig) {
	if b.Attached() != "" {
		for name := range v.lines {
			if strings.HasPrefix(name, key+".sandbox.") || strings.HasPrefix(name, key+".replace_") || name == key+".checksum" {
				v.fault(name, "is for programs that mailgw starts")
			}
		}
		return
	}
	if b.Checksum != "" && slices.Contains(v.shipped, b.Plugin) {
		v.fault(key+".checksum", "is for programs of your own; %s is mailgw itself", b.Plugin)
	} else if _, err := b.SHA256(); err != nil {
		v.fault(key+".checksum", "%v", err)
	}
	v.sandbox(key+".sandbox", &b.Sandbox)
	if most := b.Sandbox.Memory; most > 0 && b.ReplaceMemory >= most {
		v.fault(key+".replace_memory", "%v is never reached: sandbox.memory is %v", b.ReplaceMemory, most)
	}
	if most := b.Sandbox.OpenFiles; most > 0 && b.ReplaceOpenFiles >= most {
		v.fault(key+".replace_open_files", "%d is never reached: sandbox.open_files is %d", b.ReplaceOpenFiles, most)
	}
}

// SHA256 returns the checksum of the program. It is nil if any program will do.
func (b BackendConfig) SHA256() ([]byte, error) {
	if b.Checksum == "" {
		return nil, nil
	}
	digits, ok := strings.CutPrefix(b.Checksum, "sha256:")
	sum, err := hex.DecodeString(digits)
	if !ok || err != nil || len(sum) != 32 {
		return nil, fmt.Errorf("%q: want \"sha256:\" and the 64 digits that sha256sum prints", b.Checksum)
	}
	return sum, nil
}
