package mailgw

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
)

// A machine is a copy of the one that the test runs on, with a network of its
// own that leads nowhere. What root writes there is in memory, and gone at the
// end of the test, as are its processes.
type machine struct {
	init int // its first process; the others end with it
}

// bootScript makes a machine of the directory $1, with the directory $2 as
// /mnt. It ends with its standard input. Other file systems of this machine are
// not copied; what is needed of /tmp and /var is there even so.
const bootScript = `
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
mkdir "$1/changes" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/changes,workdir=$1/work" "$1/root"
mount -t tmpfs tmpfs "$1/root/tmp"
install -d "$1/root/var/lib" "$1/root/var/log"
install -d -m 1777 "$1/root/var/tmp"
mount -t proc proc "$1/root/proc"
mount -t sysfs sysfs "$1/root/sys"
mount --rbind /dev "$1/root/dev"
mount --bind "$2" "$1/root/mnt"
echo 0x9 >"$1/root/sys/class/net/lo/flags" # IFF_UP and IFF_LOOPBACK
`

// waitScript is all that the first process of a machine does.
const waitScript = `exec chroot "$1/root" bash -c 'echo booted; read -r _'`

// systemdScript makes systemd the first process, which starts nothing but what it
// is told to. All its groups of processes are in the one that the directory $3
// names.
const systemdScript = `
for directory in /etc/systemd/system /lib/systemd/system; do
	rm -rf "$1/root$directory"/*.wants
done
rm -rf "$1/root/lib/systemd/system-generators"
mount -t tmpfs tmpfs "$1/root/run"
mount -t cgroup2 cgroup2 "$1/root/sys/fs/cgroup"
mkdir "$1/root/sys/fs/cgroup/$3"
echo $$ >"$1/root/sys/fs/cgroup/$3/cgroup.procs"
umount "$1/root/sys/fs/cgroup"
exec unshare --cgroup bash -euc '
	mount -t cgroup2 cgroup2 "$1/root/sys/fs/cgroup"
	exec 3>&1 0</dev/null 1>/dev/null
	(
		until chroot "$1/root" systemctl is-active --quiet basic.target; do sleep 0.05; done
		echo booted >&3
	) &
	exec chroot "$1/root" env container=test /lib/systemd/systemd --system --unit=basic.target
' bash "$1"
`

// boot makes a machine, or skips the test where it may not.
func boot(t *testing.T, mnt string) machine {
	t.Helper()
	return bootWith(t, waitScript, t.TempDir(), mnt)
}

// bootSystemd makes a machine that systemd runs.
func bootSystemd(t *testing.T, mnt string) machine {
	t.Helper()
	group := fmt.Sprintf("mailgw-test-%d", os.Getpid())
	t.Cleanup(func() { removeGroup(t, group) })
	return bootWith(t, systemdScript, t.TempDir(), mnt, group)
}

// removeGroup removes the groups of processes that systemd has left behind.
func removeGroup(t *testing.T, group string) {
	const script = `
mount -t cgroup2 cgroup2 "$1"
test ! -e "$1/$2" || find "$1/$2" -depth -type d -exec rmdir {} +
`
	if out, err := exec.Command("unshare", "--mount", "bash", "-euc", script, "bash", t.TempDir(), group).CombinedOutput(); err != nil {
		t.Errorf("remove the groups of systemd: %v\n%s", err, out)
	}
}

func bootWith(t *testing.T, script string, args ...string) machine {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "only root can set up the service, on a copy of this machine")
	}
	cmd := exec.Command("bash", append([]string{"-euc", bootScript + script, "bash"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET}
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		missing(t, fmt.Sprintf("root may not copy this machine: %v", err))
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Process.Kill() // and with the first process all others
		cmd.Wait()
	})
	if _, err := io.ReadFull(stdout, make([]byte, len("booted\n"))); err != nil {
		cmd.Wait()
		missing(t, fmt.Sprintf("root may not copy this machine: %s", &complaint))
	}
	return machine{cmd.Process.Pid}
}

// path returns where a file of the machine is.
func (m machine) path(name string) string {
	return fmt.Sprintf("/proc/%d/root%s", m.init, name)
}

// command returns lines of shell that root runs on the machine.
func (m machine) command(lines string) *exec.Cmd {
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(m.init), "--mount", "--pid", "--net", "--root", "--wd",
		"bash", "-euc", lines)
	cmd.Env = []string{"HOME=/root", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	return cmd
}

// run returns what lines of shell print, which have to succeed.
func (m machine) run(t *testing.T, lines string) string {
	t.Helper()
	out, err := m.command(lines).CombinedOutput()
	if err != nil {
		t.Fatalf("%s\n%v\n%s", lines, err, out)
	}
	return string(out)
}

func (m machine) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(m.path(name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
