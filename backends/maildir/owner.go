package maildir

import (
	"fmt"
	"os/user"
	"strconv"
	"strings"
)

// lookupOwner returns the ids of "user:group", each -1 if it is not given.
func lookupOwner(owner string) (uid, gid int, err error) {
	userName, groupName, _ := strings.Cut(owner, ":")
	uid, gid = -1, -1
	if userName != "" {
		uid, err = lookupID(userName, func(name string) (string, error) {
			u, err := user.Lookup(name)
			if err != nil {
				return "", err
			}
			return u.Uid, nil
		})
	}
	if err == nil && groupName != "" {
		gid, err = lookupID(groupName, func(name string) (string, error) {
			g, err := user.LookupGroup(name)
			if err != nil {
				return "", err
			}
			return g.Gid, nil
		})
	}
	return uid, gid, err
}

// lookupID returns the id that name is, or that lookup finds for it.
func lookupID(name string, lookup func(string) (string, error)) (int, error) {
	id, err := strconv.ParseUint(name, 10, 31)
	if err == nil {
		return int(id), nil
	}
	found, err := lookup(name)
	if err != nil {
		return -1, err
	}
	id, err = strconv.ParseUint(found, 10, 31)
	if err != nil {
		return -1, fmt.Errorf("id of %s: %w", name, err)
	}
	return int(id), nil
}
