package colmenatest

import (
	"bytes"
	"context"
	"fmt"
	"runtime/pprof"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// label marks goroutines: one that is started by a marked goroutine is marked too. So
// those of one test are told apart from those of tests that run beside it.
type label string

const labelKey = "colmenatest"

var labels atomic.Int64

func newLabel() label { return label(fmt.Sprintf("%d", labels.Add(1))) }

// do runs f on a marked goroutine.
func (l label) do(f func()) {
	pprof.Do(context.Background(), pprof.Labels(labelKey, string(l)), func(context.Context) { f() })
}

// leakPatience is how long goroutines may take to end after everything was closed.
const leakPatience = 5 * time.Second

// check fails the test if marked goroutines do not end.
func (l label) check(tb testing.TB) {
	tb.Helper()
	deadline := time.Now().Add(leakPatience)
	for {
		left, err := l.running()
		switch {
		case err != nil:
			tb.Errorf("list goroutines: %v", err)
			return
		case left == "":
			return
		case time.Now().After(deadline):
			tb.Errorf("goroutines that nodes have started are left behind:\n%s", left)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// running lists the stacks of the marked goroutines. The profile is text: groups of equal
// stacks with an empty line between two, their labels on a line of its own.
func (l label) running() (string, error) {
	var b bytes.Buffer
	if err := pprof.Lookup("goroutine").WriteTo(&b, 1); err != nil {
		return "", err
	}
	mark := fmt.Sprintf("%q:%q", labelKey, string(l))
	var left []string
	for group := range strings.SplitSeq(b.String(), "\n\n") {
		_, rest, ok := strings.Cut(group, "# labels: ")
		if line, _, _ := strings.Cut(rest, "\n"); ok && strings.Contains(line, mark) {
			left = append(left, group)
		}
	}
	return strings.Join(left, "\n\n"), nil
}
