package browsertest

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// demo is examples/ha, run as a visitor does.
type demo struct {
	t           *testing.T
	binary, dir string
	cmd         *exec.Cmd
	stderr      strings.Builder
	page        string // where its page is
}

// startDemo builds examples/ha and starts it at a free port. When the test ends it is
// interrupted as Ctrl-C does, and must end well.
func startDemo(t *testing.T) *demo {
	t.Helper()
	dir := t.TempDir()
	d := &demo{t: t, binary: filepath.Join(dir, "ha"), dir: filepath.Join(dir, "data")}
	if runtime.GOOS == "windows" {
		t.Fatal("this test sends signals, which Windows does not have")
	}
	if out, err := exec.Command("go", "build", "-C", "../../..", "-o", d.binary, "./examples/ha").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(d.stop)
	d.start("127.0.0.1:0")
	return d
}

// start starts the demo at an address, with the data that it has from before.
func (d *demo) start(listen string) {
	d.t.Helper()
	d.cmd = exec.Command(d.binary, "-listen", listen, "-dir", d.dir)
	d.cmd.Stderr = &d.stderr
	stdout, err := d.cmd.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	url := regexp.MustCompile(`http://[0-9.:]+/`)
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if d.page = url.FindString(lines.Text()); d.page != "" {
			return
		}
	}
	d.t.Fatalf("the demo named no page\n%s", d.stderr.String())
}

// stop ends the demo, if it runs.
func (d *demo) stop() {
	d.t.Helper()
	if d.cmd.Process == nil || d.cmd.ProcessState != nil {
		return
	}
	kill := time.AfterFunc(30*time.Second, func() { _ = d.cmd.Process.Kill() })
	defer kill.Stop()
	_ = d.cmd.Process.Signal(syscall.SIGINT)
	if err := d.cmd.Wait(); err != nil {
		d.t.Errorf("the demo ended with %v\n%s", err, d.stderr.String())
		for _, log := range logs(filepath.Dir(d.dir)) {
			d.t.Log(log)
		}
	}
}

// logs returns the ends of what the nodes had to say.
func logs(dir string) (ends []string) {
	files, _ := filepath.Glob(filepath.Join(dir, "data", "*.log"))
	for _, file := range files {
		if b, err := os.ReadFile(file); err == nil {
			ends = append(ends, file+"\n"+string(b[max(0, len(b)-4000):]))
		}
	}
	return ends
}
