package maildir

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/mailgw/mailgw/backends"
)

// childDir names the variable that makes a child process of the test.
const childDir = "MAILDIR_TEST_DIRECTORY"

// When a process says 250, all that leads to the message is on the disk: the
// kernel was told to write the file before it got its name in new, then new
// itself, and the directories above, which are new as well.
func TestSyncedBeforeSuccess(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		deliverAndSay(t, dir)
		return
	}
	top := t.TempDir()
	checkCalls(t, top, "", "mail", "mail/example.org", "mail/example.org/ann")
	// Whoever made the directories may have ended before they were on the disk.
	checkCalls(t, top, "mail", "mail/example.org", "mail/example.org/ann")
}

// checkCalls checks the calls of a process that delivers. The directories
// named have to be synced too.
func checkCalls(t *testing.T, top string, directories ...string) {
	t.Helper()
	calls, _ := traceDelivery(t, top, "-e", "trace=fsync,linkat,write")
	position := func(format string, args ...any) int {
		call := regexp.MustCompile(fmt.Sprintf(format, args...))
		return slices.IndexFunc(calls, call.MatchString)
	}
	box := regexp.QuoteMeta(filepath.Join(top, "mail/example.org/ann"))
	order := []int{
		position(`^fsync\(\d+<%s/tmp/[^/]+>\) += 0`, box),
		position(`^linkat\(\d+<%s/tmp>, "[^"]+", \d+<%s/new>, "[^"]+", 0\) += 0`, box, box),
		position(`^fsync\(\d+<%s/new>\) += 0`, box),
		position(`^write\(1<.*"250 2\.0\.0 delivered`),
	}
	if order[0] < 0 || !slices.IsSorted(order) || len(slices.Compact(order)) != 4 {
		t.Errorf("file synced, linked, new synced and 250 said in lines %v of\n%s", order, strings.Join(calls, "\n"))
	}
	for _, dir := range directories {
		at := position(`^fsync\(\d+<%s>\) += 0`, regexp.QuoteMeta(filepath.Join(top, dir)))
		if at < 0 || at > order[3] {
			t.Errorf("directory %q synced in line %d, 250 said in line %d of\n%s", dir, at, order[3], strings.Join(calls, "\n"))
		}
	}
}

// A message is taken out of new if it is not sure to stay there.
func TestNothingIsLeftInNewThatIsNotSynced(t *testing.T) {
	top := t.TempDir()
	box := filepath.Join(top, "mail/example.org/ann")
	if err := os.MkdirAll(filepath.Join(box, "new"), 0o700); err != nil {
		t.Fatal(err)
	}
	calls, said := traceDelivery(t, top, "-P", filepath.Join(box, "new"), "-e", "trace=fsync", "-e", "inject=fsync:error=EIO")
	if want := "451 4.3.0 "; !strings.Contains(said, want) || !strings.Contains(said, box+"/new: input/output error") {
		t.Errorf("got %q, want %s and the cause; calls:\n%s", said, want, strings.Join(calls, "\n"))
	}
	wantNoFiles(t, top)
}

// traceDelivery runs a process that delivers under strace, and returns its
// calls and what it says.
func traceDelivery(t *testing.T, top string, options ...string) (calls []string, said string) {
	t.Helper()
	strace, err := exec.LookPath("strace")
	if err != nil {
		missing(t, "strace is not installed")
	}
	log := filepath.Join(t.TempDir(), "log")
	args := slices.Concat([]string{"-f", "-y", "-s", "64", "-o", log, "-e", "signal=none"}, options,
		[]string{os.Args[0], "-test.run=^TestSyncedBeforeSuccess$", "-test.v"})
	cmd := exec.Command(strace, args...)
	cmd.Env = append(os.Environ(), childDir+"="+top)
	out, err := cmd.CombinedOutput()
	if err != nil {
		if strings.Contains(string(out), "PTRACE") {
			missing(t, "strace may not trace: "+string(out))
		}
		t.Fatalf("%v\n%s", err, out)
	}
	return completedCalls(mustRead(t, log)), string(out)
}

// deliverAndSay is the process that strace looks at.
func deliverAndSay(t *testing.T, top string) {
	s := Defaults
	s.Path = filepath.Join(top, "mail", "{domain}", "{user}")
	b := mustNew(t, s)
	_, err := backends.Run(t.Context(), b, transaction("Subject: test\r\n\r\n", "ann@example.org"), backends.Hooks{
		Status: func(_ int, s backends.Status) { os.Stdout.WriteString(s.Error() + "\n") },
	})
	t.Log(err)
}

// completedCalls returns the calls in a log of strace in the order in which
// they ended, which makes a whole of those that others came between.
func completedCalls(log string) []string {
	var calls []string
	begun := map[string]string{} // by thread
	for line := range strings.Lines(log) {
		thread, call, _ := strings.Cut(strings.TrimSpace(line), " ")
		call = strings.TrimSpace(call)
		if begin, ok := strings.CutSuffix(call, " <unfinished ...>"); ok {
			begun[thread] = begin
			continue
		}
		if strings.HasPrefix(call, "<... ") {
			_, end, _ := strings.Cut(call, "resumed>")
			call = begun[thread] + end
		}
		calls = append(calls, call)
	}
	return calls
}
