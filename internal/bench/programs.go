package main

import (
	"fmt"
	"os/exec"
	"path/filepath"

	"github.com/mailgw/mailgw/internal/peers"
)

// programs are the programs of all servers. Those that there is an error for
// are missing.
type programs struct {
	mailgw, plugin string

	goSMTP      string
	goSMTPError error

	postfix      peers.Postfix
	postfixError error
}

// findPrograms builds from the sources below root, into dir, what comes from
// there, and finds the others. A mailgw that is given is not built.
func findPrograms(root, dir, mailgw string) (all programs, err error) {
	build := func(module, name, what string) (string, error) {
		path := filepath.Join(dir, name)
		cmd := exec.Command("go", "build", "-buildvcs=false", "-o", path, what)
		cmd.Dir = filepath.Join(root, module)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", cmd, err, out)
		}
		return path, nil
	}
	if mailgw != "" {
		all.mailgw, err = filepath.Abs(mailgw)
	} else {
		all.mailgw, err = build(".", "mailgw", "./cmd/mailgw")
	}
	if err != nil {
		return all, err
	}
	if all.plugin, err = build(".", "plugin", "./internal/bench/plugin"); err != nil {
		return all, err
	}
	// It may have to come from the module proxy.
	if all.goSMTP, err = build("internal/bench/peers", "go-smtp", "."); err != nil {
		all.goSMTPError = missing(err)
	}
	if all.postfix, err = peers.FindPostfix(root); err != nil {
		all.postfixError = missing(err)
	}
	return all, nil
}
