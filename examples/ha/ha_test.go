package main

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
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
