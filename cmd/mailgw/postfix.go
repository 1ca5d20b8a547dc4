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
	p := postfixPrinter{printed: map[string]string{}}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		named := slices.Index(f.listeners, l.Name)
		if f.listeners != nil && named < 0 {
			continue
		}
		if named >= 0 {
			f.listeners = slices.Delete(f.listeners, named, named+1)
		}
		s := setUpPostfix(c, l, f)
		p.heading(l, &s)
		if slices.Contains(files, "main.cf") && len(s.main) > 0 {
			fmt.Fprint(&p, "# In main.cf:\n\n")
			p.parameters(s.main)
		}
		if slices.Contains(files, "master.cf") && len(s.services) > 0 {
			fmt.Fprint(&p, "# In master.cf:\n\n")
			p.services(s.services)
		}
	}
	if len(f.listeners) > 0 {
		return fmt.Errorf("no listener %s in %s", strings.Join(f.listeners, ", "), f.config)
	}
	_, err = p.WriteTo(stdout)
	return err
}

// A postfixPrinter prints in the form of main.cf and master.cf.
type postfixPrinter struct {
	bytes.Buffer

	// What was printed, as a name in a file stands for one thing only: values
	// of main.cf by their names, services of master.cf by theirs.
	printed map[string]string
}

func (p *postfixPrinter) heading(l *gateway.ListenerConfig, s *postfixSetup) {
	p.comment("# ", "Listener "+l.Name+": "+s.use+".")
	for _, remark := range s.remarks {
		p.comment("# ", remark)
	}
	fmt.Fprintln(p)
}

// parameters prints parameters of main.cf. Of several values of one only the
// first holds.
func (p *postfixPrinter) parameters(all []postfixParameter) {
	for _, param := range all {
		value, again := p.printed[param.name]
		if again && value == param.value {
			continue
		}
		p.comment("# ", param.why)
		if again {
			p.comment("# ", "There can be one only, and a listener above has it.")
		} else if !param.off {
			p.printed[param.name] = param.value
		}
		p.off(again || param.off)
		fmt.Fprintln(p, strings.TrimSpace(param.name+" = "+param.value))
	}
	fmt.Fprintln(p)
}

// services prints services of master.cf, each of them once.
func (p *postfixPrinter) services(all []postfixService) {
	for _, s := range all {
		if _, again := p.printed[s.name]; again {
			continue
		}
		p.printed[s.name] = s.columns
		p.comment("# ", s.why)
		fmt.Fprintf(p, "%s  %s\n", s.name, s.columns)
		for _, o := range s.options {
			p.comment("  # ", o.why)
			fmt.Fprint(p, "  ")
			p.off(o.off)
			fmt.Fprintf(p, "-o %s=%s\n", o.name, o.value)
		}
		fmt.Fprintln(p)
	}
}

// off begins what is there to be switched on.
func (p *postfixPrinter) off(is bool) {
	if is {
		fmt.Fprint(p, "#")
	}
}

// comment prints lines that are not too long.
func (p *postfixPrinter) comment(begin, text string) {
	const width = 80
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len(begin+line+" "+word) > width {
			fmt.Fprintln(p, begin+line)
			line = ""
		}
		line = strings.TrimSpace(line + " " + word)
	}
	if line != "" {
		fmt.Fprintln(p, begin+line)
	}
}
