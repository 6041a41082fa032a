//go:build unix

package main

import (
	"bufio"
	"context"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestNodesEndWithTheirSupervisor kills a supervisor, with one node down, one paused and
// two running: all end by themselves.
func TestNodesEndWithTheirSupervisor(t *testing.T) {
	demo := exec.Command(os.Args[0], "-listen", "127.0.0.1:0", "-dir", t.TempDir())
	demo.Env = append(os.Environ(), mainEnv+"=1")
	stdout, err := demo.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := demo.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = demo.Process.Kill() }()
	var page string
	for lines := bufio.NewScanner(stdout); page == "" && lines.Scan(); {
		page = regexp.MustCompile(`http://[0-9.:]+`).FindString(lines.Text())
	}
	token := tokenOf(t, page)
	for _, what := range []string{"/node/node-1/do/kill", "/node/node-2/do/pause"} {
		var after []facts
		if err := ask(t.Context(), http.MethodPost, page+what, token, nil, &after); err != nil {
			t.Fatal(err)
		}
	}
	var all []facts
	if err := ask(t.Context(), http.MethodGet, page+"/facts", token, nil, &all); err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, f := range all {
		states = append(states, f.Process)
	}
	if got := strings.Join(states, " "); got != "down paused running running" {
		t.Fatalf("the nodes are %s", got)
	}
	// The system lets go on who is stopped when the supervisor ends, not who stops after that.
	for deadline := time.Now().Add(10 * time.Second); !isIn("T", all[1].PID); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("node-2 was not stopped")
		}
	}
	if err := demo.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = demo.Wait()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var left []string
		for _, f := range all {
			if f.PID != 0 && syscall.Kill(f.PID, 0) == nil && !isIn("Z", f.PID) {
				left = append(left, f.ID)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v outlived their supervisor", left)
		}
	}
}

// tokenOf reads the page as a browser does.
func tokenOf(t *testing.T, page string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, page, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if found := regexp.MustCompile(`data-token="(\w+)"`).FindStringSubmatch(lines.Text()); found != nil {
			return found[1]
		}
	}
	t.Fatal("the page has no token")
	return ""
}

// isIn reports whether a process is in a state: T is stopped, and Z has ended and nobody has
// waited for it, which is what becomes of an orphan where process 1 is no init.
func isIn(state string, pid int) bool {
	is, err := exec.Command("ps", "-o", "stat=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.HasPrefix(strings.TrimSpace(string(is)), state)
}
