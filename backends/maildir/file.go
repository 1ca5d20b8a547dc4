package maildir

import (
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"
)

// A file is a message on its way into one mailbox.
type file struct {
	*os.File
	box  *os.Root
	name string
}

var deliveries atomic.Uint64

// newFile makes an empty file in the tmp of a mailbox.
func (b *backend) newFile(box *os.Root) (*file, error) {
	// A name that nobody else takes: https://cr.yp.to/proto/maildir.html.
	now := time.Now()
	host := strings.NewReplacer("/", `\057`, ":", `\072`).Replace(b.Hostname)
	name := fmt.Sprintf("%d.M%06dP%dQ%d.%s", now.Unix(), now.Nanosecond()/1000, os.Getpid(), deliveries.Add(1), host)

	f, err := box.OpenFile("tmp/"+name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, whole(box, err)
	}
	d := &file{f, box, name}
	err = f.Chmod(b.Mode) // whatever the umask is
	if err == nil && (b.uid >= 0 || b.gid >= 0) {
		err = f.Chown(b.uid, b.gid)
	}
	if err != nil {
		d.leave()
		f.Close()
		return nil, err
	}
	return d, nil
}

// publish puts the file, which is on the disk, into new. A file of that name
// would not be overwritten.
func (f *file) publish() error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// Dovecot takes the size from the name.
	name := fmt.Sprintf("new/%s,S=%d", f.name, info.Size())
	if err := f.box.Link("tmp/"+f.name, name); err != nil {
		return whole(f.box, err)
	}
	if err := syncDir(f.box, "new"); err != nil {
		f.box.Remove(name)
		return err
	}
	return nil
}

// leave takes the file out of tmp, be it in new or not.
func (f *file) leave() { f.box.Remove("tmp/" + f.name) }
