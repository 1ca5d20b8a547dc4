// Package maildir is a backend that delivers into Maildirs:
//
//	[backend.maildir.settings]
//	path = "/var/vmail/{domain}/{user}"
//
// Each recipient gets a file of its own, written in tmp and linked into new.
// When its status is 250, the file and all the directories that lead to it
// are on the disk. The message is stored byte for byte, with CRLF line ends;
// nothing is put before it unless the settings say so. One recipient's trouble
// does not harm the others, and a delivery that does not succeed leaves
// nothing behind.
//
// An address that can be no directory name is refused with 550 5.1.3, and with
// create = false a user whose directory is not there with 550 5.1.1. A full disk
// or quota is 452 4.3.1, and all other trouble is 451, with the cause in the log:
// that a directory above the user's is missing or empty, too, since its disk may
// not be mounted.
//
// It does not clean tmp after a crash of the machine or the process: files
// there that are older than 36 hours may be removed by anybody. It does not
// take a Return-Path away that the message brings. The file system needs hard
// links.
package maildir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/mailgw/mailgw/backends"
	"github.com/mailgw/mailgw/internal/smtp"
)

// Settings say where the mailboxes are and what is put before messages.
type Settings struct {
	// Path is where a mailbox is. In it, {user} stands for the local part
	// without its detail, {detail} for the detail, {domain} for the domain,
	// and {address} for user@domain. A component of the path has one of
	// them at most, and {detail} stands in the last one only, which is left
	// out if there is no detail: "/var/vmail/{domain}/{user}/.{detail}".
	Path string `toml:"path"`

	// RecipientDelimiter parts user and detail, at its first place in the
	// local part that is not the very start. Of several characters, each
	// one does.
	RecipientDelimiter string `toml:"recipient_delimiter"`

	// Create says that missing mailboxes are made. If not, they are
	// refused. A mailbox is there if its directory is, and that of
	// {detail} is a mailbox like any other: mail for user+detail is
	// refused if the user has a mailbox, but none for that detail.
	Create bool `toml:"create"`

	// Mode and DirMode are of the files and directories that are made.
	// Owner is "user", "user:group" or ":group", by name or number. If it
	// is empty they belong to the process.
	Mode    fs.FileMode `toml:"mode"`
	DirMode fs.FileMode `toml:"dir_mode"`
	Owner   string      `toml:"owner"`

	// ReturnPath, DeliveredTo and Received say whether the header field of
	// that name is put before the message.
	ReturnPath  bool `toml:"return_path"`
	DeliveredTo bool `toml:"delivered_to"`
	Received    bool `toml:"received"`

	// Hostname stands in Received and in the names of files, and is the
	// domain of the address "postmaster", which has none. If it is empty,
	// it is the system's.
	Hostname string `toml:"hostname"`
}

// Defaults are the Settings that hold for keys that are not given. Path has
// to be given.
var Defaults = Settings{
	RecipientDelimiter: "+",
	Create:             true,
	Mode:               0o600,
	DirMode:            0o700,
}

// New returns a backend that delivers into Maildirs. Nothing is made on the
// disk before the first delivery.
func New(s Settings) (backends.Backend, error) {
	b := &backend{Settings: s, durable: map[string]bool{}}
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, backends.SettingError{Key: key, Err: fmt.Errorf(format, args...)})
	}
	var err error
	if s.Path == "" {
		fault("path", "is missing; want a path such as /var/vmail/{domain}/{user}")
	} else if b.template, err = parseTemplate(s.Path); err != nil {
		fault("path", "%q: %w", s.Path, err)
	}
	if err == nil {
		b.warn()
	}
	if !smtp.IsASCII(s.RecipientDelimiter) {
		fault("recipient_delimiter", "%q is not US-ASCII", s.RecipientDelimiter)
	}
	if s.Mode&0o600 != 0o600 {
		fault("mode", "%04o keeps the owner from reading or writing", s.Mode)
	}
	if s.DirMode&0o700 != 0o700 {
		fault("dir_mode", "%04o keeps the owner out", s.DirMode)
	}
	if b.uid, b.gid, err = lookupOwner(s.Owner); err != nil {
		fault("owner", "%q: %w", s.Owner, err)
	}
	if s.Hostname == "" {
		if b.Hostname, err = backends.Hostname(); err != nil {
			fault("hostname", "%w", err)
		}
	}
	if _, err := smtp.CheckMailbox("postmaster@"+b.Hostname, true); err != nil {
		fault("hostname", "%q: %w", b.Hostname, err)
	}
	return b, errors.Join(faults...)
}

// warn tells of paths that are hardly meant.
func (b *backend) warn() {
	if !strings.Contains(b.Path, "{") {
		slog.Warn("path has no placeholder: all mail goes into one Maildir", "path", b.Path)
	}
	if !b.Create {
		return
	}
	const accessWrite, accessEnter = 2, 1 // W_OK, X_OK
	// The nearest directory that is there already.
	for dir := b.template.base; ; dir = filepath.Dir(dir) {
		err := syscall.Access(dir, accessWrite|accessEnter)
		if errors.Is(err, fs.ErrNotExist) && dir != "/" {
			continue
		}
		if err != nil {
			slog.Warn("path: Maildirs cannot be made", "directory", dir, "error", err.Error())
		}
		return
	}
}

type backend struct {
	Settings
	template template
	uid, gid int // -1: as the process

	mu      sync.Mutex
	durable map[string]bool // mailboxes whose path is known to be on the disk
}

// Capabilities has REQUIRETLS because a message that is stored goes nowhere.
func (b *backend) Capabilities() backends.Capabilities {
	can := backends.Storing
	can.RequireTLS = true
	return can
}

// Needs has the directory that all mailboxes are in.
func (b *backend) Needs() []string {
	above, _, varies := strings.Cut(b.Path, "{")
	if varies {
		above = filepath.Dir(above + "user")
	}
	return []string{"writes " + above}
}

// MayEdit returns that it edits nothing.
func (b *backend) MayEdit() backends.EditKinds { return 0 }

// Deliver stores the message in the mailbox of one recipient after the other.
func (b *backend) Deliver(ctx context.Context, tx *backends.DataContext) error {
	m := &message{ctx: ctx, body: tx.Body, size: tx.Size}
	defer m.close()
	var trouble []error
	for i, r := range tx.Envelope.Recipients {
		err := b.deliver(tx, m, r.Address)
		if m.err != nil {
			return errors.Join(append(trouble, m.err)...)
		}
		s := statusOf(err)
		tx.SetStatus(i, s)
		if s.Temporary() {
			trouble = append(trouble, fmt.Errorf("%s: %w", r.Address, err))
		}
	}
	return errors.Join(trouble...)
}

// deliver stores m in one mailbox. When it returns nil, it is there to stay.
func (b *backend) deliver(tx *backends.DataContext, m *message, address string) error {
	if err := m.over(); err != nil {
		return err
	}
	path, err := b.path(address)
	if err != nil {
		return err
	}
	box, err := b.open(path)
	if err != nil {
		return err
	}
	defer box.Close()
	f, err := b.newFile(box)
	if err != nil {
		return err
	}
	defer func() {
		f.leave()
		if f != m.source {
			f.Close()
		}
	}()
	if err := m.writeTo(f, b.header(tx, address)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := m.over(); err != nil {
		return err
	}
	return f.publish()
}

// path returns the path of an address's mailbox, below the base of the
// template.
func (b *backend) path(address string) (string, error) {
	mailbox := address
	if !strings.Contains(address, "@") {
		mailbox = address + "@" + b.Hostname
	}
	mailbox, err := smtp.CheckMailbox(mailbox, true)
	if err != nil {
		return "", errBadAddress
	}
	return b.template.expand(splitAddress(mailbox, b.RecipientDelimiter))
}

// statusOf returns what the client is told of a delivery.
func statusOf(err error) backends.Status {
	switch {
	case err == nil:
		return backends.Delivered
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return backends.StorageFull
	}
	return backends.StatusOf(err)
}
