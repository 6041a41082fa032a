package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// mainEnv, when set, makes the test binary the demo itself.
const mainEnv = "COLMENA_EXAMPLE_HA_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(nodeEnv) != "" || os.Getenv(mainEnv) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestNothingIsLostOrDoubledInChaos runs the whole demonstration without a page, and once
// more in the same directory: everything is there again.
func TestNothingIsLostOrDoubledInChaos(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	var rows []int
	for i, o := range []options{{chaos: true, seed: 3, duration: 4 * time.Second}, {duration: time.Second / 2}} {
		var out strings.Builder
		o.headless, o.dir = true, dir
		if err := run(t.Context(), &out, o); err != nil {
			t.Fatalf("%v\n%s", err, out.String())
		}
		t.Log("\n" + out.String())
		for _, want := range []string{"lost                 0\n", "doubled              0\n"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("run %d does not say %q", i, want)
			}
		}
		held := regexp.MustCompile(`node-\d +(\d+) rows, checksum`).FindAllStringSubmatch(out.String(), -1)
		if len(held) != voters+learners {
			t.Fatalf("%d nodes were counted", len(held))
		}
		n, err := strconv.Atoi(held[0][1])
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, n)
	}
	if rows[1] <= rows[0] {
		t.Errorf("after a stop and a start of the demo there are %d rows, and were %d", rows[1], rows[0])
	}
}

// TestInterruptionIsNoSuccess holds that a run that was cut short says so.
func TestInterruptionIsNoSuccess(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out strings.Builder
	err := run(ctx, &out, options{headless: true, dir: t.TempDir(), duration: time.Minute})
	if err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

// startNodes starts the demo's nodes, which end with the test.
func startNodes(t *testing.T) *supervisor {
	t.Helper()
	s, err := newSupervisor(filepath.Join(t.TempDir(), "data"), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.stop() })
	if err := s.startAll(); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestReportOfANodeThatIsGone kills a node as nobody of the demo did: what it holds is not
// known, and that is no success; what the others hold is judged all the same.
func TestReportOfANodeThatIsGone(t *testing.T) {
	s := startNodes(t)
	if err := until(recoverTimeout, "the tables", func() error {
		_, _, err := s.holdings()
		return err
	}); err != nil {
		t.Fatal(err)
	}
	gone := s.nodes[1]
	if err := gone.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-gone.ended
	held, ids, err := s.holdings()
	if err == nil || !slices.Equal(ids, []string{"node-1", "node-3", "node-4"}) {
		t.Fatalf("%v answered, and %v", ids, err)
	}
	var out strings.Builder
	v := judge(nil, nil, held, ids)
	(&headless{out: &out}).report(s, v, held, ids, nil)
	if got := out.String(); !regexp.MustCompile(`node-2 +did not answer\n`).MatchString(got) || !strings.Contains(got, "lost                 0\n") {
		t.Error(got)
	}
	if err := s.crashed(); err == nil || !strings.Contains(err.Error(), "node-2 ended 1 times by itself") {
		t.Errorf("%v", err)
	}
}

// TestSecondDemoInADirectoryIsRefused: each node says why, and nothing else.
func TestSecondDemoInADirectoryIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	s, err := newSupervisor(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.stop() }()
	if err := s.startAll(); err != nil {
		t.Fatal(err)
	}
	err = run(t.Context(), io.Discard, options{headless: true, dir: dir, duration: time.Second})
	if err == nil || strings.Count(err.Error(), "in use by another process") != len(s.nodes) || strings.Count(err.Error(), "\n") != len(s.nodes)-1 {
		t.Errorf("%v", err)
	}
}
