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

// startDemo builds examples/ha, starts it at a free port, and returns where its page is.
// When the test ends it is interrupted as Ctrl-C does, and must end well.
func startDemo(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "ha")
	if runtime.GOOS == "windows" {
		t.Fatal("this test sends signals, which Windows does not have")
	}
	if out, err := exec.Command("go", "build", "-C", "../../..", "-o", binary, "./examples/ha").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	demo := exec.Command(binary, "-listen", "127.0.0.1:0", "-dir", filepath.Join(dir, "data"))
	var stderr strings.Builder
	demo.Stderr = &stderr
	stdout, err := demo.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		kill := time.AfterFunc(30*time.Second, func() { _ = demo.Process.Kill() })
		defer kill.Stop()
		_ = demo.Process.Signal(syscall.SIGINT)
		if err := demo.Wait(); err != nil {
			t.Errorf("the demo ended with %v\n%s", err, stderr.String())
			for _, log := range logs(dir) {
				t.Log(log)
			}
		}
	})
	url := regexp.MustCompile(`http://[0-9.:]+/`)
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if found := url.FindString(lines.Text()); found != "" {
			return found
		}
	}
	t.Fatalf("the demo named no page\n%s", stderr.String())
	return ""
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
