package peers

import (
	"bytes"
	"cmp"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/mailgw/mailgw/internal/gatewaytest"
)

// The test message of rspamd and others, in two parts, so that no scanner takes
// this file for it.
const gtube = `XJS*C4JDBQADN1.NSBN3*2IDNEN*` + `GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X`

// rspamdConfig is a normal worker without modules, DNS, Redis and controller.
// The list of top-level domains is short: it takes seconds to compile Debian's.
const rspamdConfig = `
options {
  filters = "";
  url_tld = "DIR/tlds";
  disable_hyperscan = true;
  tempdir = "DIR";
  hs_cache_dir = "DIR";
  cache_file = "DIR/symbols";
  control_socket = "DIR/control.sock mode=0600";
  dns { nameserver = ["127.0.0.1:1"]; }
}
logging { type = "console"; level = "warning"; }
worker "normal" { bind_socket = "DIR/normal.sock mode=0600"; count = 1; }
actions { reject = 15; rewrite_subject = 8; add_header = 6; greylist = 4; subject = "[SPAM] %s"; }
lua = "DIR/rules.lua";
`

// rspamdRules recommend what the subject says, and tell in a header field what
// rspamd was told.
const rspamdRules = `
local mime = require "lua_mime"
rspamd_config:register_symbol({name = "SUBJECT", type = "prefilter", callback = function(task)
  local function told(name) return name .. "=" .. tostring(task:get_request_header(name) or "") end
  local to = {}
  for _, r in ipairs(task:get_recipients("smtp")) do to[#to + 1] = r.addr end
  local facts = table.concat({
    "from=" .. task:get_from("smtp")[1].addr, "to=" .. table.concat(to, ","), "ip=" .. tostring(task:get_from_ip()),
    told("helo"), told("hostname"), told("queue-id"), told("mta-name"), "size=" .. task:get_size(),
  }, "; ")
  mime.modify_headers(task, {
    add = {["X-Facts"] = facts, ["X-Top"] = {value = "1;\r\n\tfolded", order = 1}},
    remove = {["X-Old"] = 0, ["X-Two"] = {-1}},
  })
  local action = task:get_header("Subject"):match("^action (.*)$")
  if action then task:set_pre_result(action, "as the subject says") end
end})
`

// startRspamd returns the socket of a rspamd.
func startRspamd(t *testing.T) (socket string) {
	t.Helper()
	program := peer(t, "rspamd")
	dir := gatewaytest.Directory(t)
	for name, text := range map[string]string{
		"rspamd.conf": strings.ReplaceAll(rspamdConfig, "DIR", dir),
		"rules.lua":   rspamdRules,
		"tlds":        "example\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// It wants to be told to stay root.
	cmd := exec.Command(program, "--no-fork", "--insecure", "--config", filepath.Join(dir, "rspamd.conf"))
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM) // ends its workers, too
		cmd.Wait()
	})
	socket = filepath.Join(dir, "normal.sock")
	gatewaytest.Eventually(t, "rspamd listens", func() bool {
		c, err := net.Dial("unix", socket)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return socket
}

// Each action of rspamd has its answer or its edits, and it is told who the
// client is that an MTA tells us of.
func TestRspamd(t *testing.T) {
	t.Parallel()
	socket := startRspamd(t)
	g := gatewaytest.Start(t, gatewaytest.AsTested, gatewaytest.LMTP, `
xforward = ["unix"]
[listener.routes]
"*" = ["rspamd", "inbox"]
[backend.rspamd]
plugin = "rspamd"
[backend.rspamd.settings]
address = "unix:`+socket+`"
hostname = "mx.peers.example"
`, gatewaytest.Inbox)
	tests := []struct {
		subject string
		body    string
		want    string // answer, if it is not delivered
		title   string // new subject
		added   string // by the action
	}{
		{subject: "plain"},
		{subject: "action add header", added: "X-Spam: Yes"},
		{subject: "action rewrite subject", title: "[SPAM] action rewrite subject"},
		{subject: "action greylist"},
		{subject: "action soft reject", want: "451 4.7.1 <ann@peers.example> as the subject says"},
		{subject: "action reject", want: "550 5.7.1 <ann@peers.example> as the subject says"},
		{subject: "gtube", body: gtube, want: "550 5.7.1 <ann@peers.example> Gtube pattern"},
	}
	for _, test := range tests {
		message := lines(
			"X-Old: 1", "X-Two: 1", "Subject: "+test.subject, "x-old: 2", "X-Two: 2", "From: sender@peers.example",
			"X-Spam: No, says the sender", "", cmp.Or(test.body, "8-bit \xff\xfe"), ".", "..")
		want := lines(
			"X-Top: 1;", "\tfolded", "X-Two: 1", "Subject: "+cmp.Or(test.title, test.subject), "From: sender@peers.example",
			"X-Facts: from=sender@peers.example; to=ann@peers.example,bob@peers.example; ip=192.0.2.1; helo=client.example; "+
				"hostname=mail.client.example; queue-id=4XYZ; mta-name=mx.peers.example; size="+strconv.Itoa(len(message)),
			test.added, "", cmp.Or(test.body, "8-bit \xff\xfe"), ".", "..")
		if test.added == "" {
			want = bytes.Replace(want, []byte("\r\n\r\n"), []byte("\r\n"), 1)
		}
		got := sendForwarded(t, g, message, "ann@peers.example", "bob@peers.example")
		if got != test.want {
			t.Errorf("%s: got %q, want %q", test.subject, got, test.want)
		}
		for _, user := range []string{"ann", "bob"} {
			if test.want == "" {
				checkOnly(t, g, test.subject, user, string(want))
			} else if mail := g.Mail(user); mail != nil {
				t.Errorf("%s: %s has %q", test.subject, user, mail)
			}
		}
	}
}

// sendForwarded sends a message as an MTA does that tells of its client. It
// returns the first answer that is not positive, without the transaction.
func sendForwarded(t *testing.T, g *gatewaytest.Gateway, message []byte, to ...string) string {
	t.Helper()
	c, err := connect("unix", g.Address("lmtp"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.say(250, "XFORWARD NAME=mail.client.example ADDR=192.0.2.1 HELO=client.example IDENT=4XYZ"); err != nil {
		t.Fatal(err)
	}
	return firstRefusal(t, c.send(message, "sender@peers.example", to...))
}
