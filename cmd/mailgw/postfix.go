package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mailgw/mailgw/gateway"
)

// postfixFlags are the flags of postfix.
type postfixFlags struct {
	config    string
	listeners []string
	before    bool // the queue
	queue     string
}

func postfixCommand() *cobra.Command {
	var f postfixFlags
	files := []string{"main.cf", "master.cf"}
	cmd := &cobra.Command{
		Use:   "postfix [main.cf|master.cf]",
		Short: "Print the lines that make Postfix use the listeners",
		Long: `Postfix reads the configuration, and prints what has to stand in main.cf and
master.cf of a Postfix on this machine, so that it uses the listeners. With the
name of a file it prints what is for that one only. Comments say why, and begin
with WARNING where the configuration and Postfix do not go together.

A listener of which a route ends in a backend with plugin = "relay" is a content
filter, from which mail comes back to the relay's targets on this machine: after
the queue or, with --before-queue, if it speaks SMTP, before it. To the others
Postfix delivers.

The names of sockets are told to Postfix as they are in its queue directory, so
that it finds them in a chroot too. Postfix need not be installed, and nothing of
it is changed. No backend is started, and the settings of backends are not checked:
let check find what is wrong with them.

Exit codes:
  0   done
  64  wrong usage
  78  the configuration has a problem`,
		Example: `  mailgw postfix --config /etc/mailgw/gateway.toml
  mailgw postfix --before-queue --listener filter master.cf`,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: files,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				files = args
			}
			return printPostfix(cmd.OutOrStdout(), cmd.ErrOrStderr(), f, files)
		},
	}
	configFlag(cmd, &f.config)
	cmd.Flags().StringSliceVar(&f.listeners, "listener", nil, "names of listeners, instead of all")
	cmd.Flags().BoolVar(&f.before, "before-queue", false, "let SMTP listeners filter mail before Postfix has taken it")
	cmd.Flags().StringVar(&f.queue, "queue-directory", "/var/spool/postfix", "queue_directory of Postfix")
	return cmd
}

func printPostfix(stdout, stderr io.Writer, f postfixFlags, files []string) error {
	c, problems, err := loadConfig(f.config, stderr)
	if err != nil {
		return err
	}
	if len(problems) > 0 {
		return exitError{exitConfig, problems}
	}
	for _, name := range f.listeners {
		if !slices.ContainsFunc(c.Listeners, func(l gateway.ListenerConfig) bool { return l.Name == name }) {
			return fmt.Errorf("no listener %q in %s", name, f.config)
		}
	}
	p := postfixPrinter{printed: map[string]string{}}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if len(f.listeners) > 0 && !slices.Contains(f.listeners, l.Name) {
			continue
		}
		s := setUpPostfix(c, l, f)
		p.comment("", "Listener "+l.Name+": "+s.use+".")
		for _, remark := range s.remarks {
			p.comment("", remark)
		}
		p.WriteString("\n")
		if slices.Contains(files, "main.cf") && len(s.main) > 0 {
			p.parameters(s.main)
		}
		if slices.Contains(files, "master.cf") && len(s.services) > 0 {
			p.services(s.services)
		}
	}
	_, err = p.WriteTo(stdout)
	return err
}

// A postfixPrinter prints in the form of main.cf and master.cf.
type postfixPrinter struct {
	bytes.Buffer
	printed map[string]string // entries in force, by what is once in a file only
}

func (p *postfixPrinter) parameters(all []postfixParameter) {
	p.WriteString("# In main.cf:\n\n")
	for _, param := range all {
		p.entry(param.name, param.why, strings.TrimSpace(param.name+" = "+param.value)+"\n", param.off)
	}
	p.WriteString("\n")
}

func (p *postfixPrinter) services(all []postfixService) {
	p.WriteString("# In master.cf:\n\n")
	for _, s := range all {
		var lines postfixPrinter
		fmt.Fprintf(&lines, "%s  %s\n", s.name, s.columns)
		for _, o := range s.options {
			lines.comment("  ", o.why)
			off := ""
			if o.off {
				off = "#"
			}
			fmt.Fprintf(&lines, "  %s-o %s=%s\n", off, o.name, o.value)
		}
		p.entry(s.name, s.why, lines.String()+"\n", false)
	}
}

// entry prints the lines of an entry, unless they stand above. They are commented
// out if they are off, or if others of that name stand above.
func (p *postfixPrinter) entry(name, why, lines string, off bool) {
	above, again := p.printed[name]
	if again && above == lines {
		return
	}
	p.comment("", why)
	if again {
		p.comment("", "There can be one only, and a listener above has it.")
		off = true
	}
	if !off {
		p.printed[name] = lines
	}
	for line := range strings.Lines(lines) {
		if off && line != "\n" {
			p.WriteString("#")
		}
		p.WriteString(line)
	}
}

// comment prints lines that are not too long.
func (p *postfixPrinter) comment(indent, text string) {
	const width = 80
	line := indent + "#"
	for _, word := range strings.Fields(text) {
		if len(line)+len(" ")+len(word) > width {
			p.WriteString(line + "\n")
			line = indent + "#"
		}
		line += " " + word
	}
	if text != "" {
		p.WriteString(line + "\n")
	}
}
