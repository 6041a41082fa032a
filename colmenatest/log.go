package colmenatest

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"
)

// newLogger makes a logger that writes a node's log to the test's.
func newLogger(tb testing.TB, node string) *slog.Logger {
	w := &testWriter{tb: tb}
	tb.Cleanup(w.stop)
	l := slog.New(slog.NewTextHandler(w, nil))
	if node != "" {
		l = l.With("node", node)
	}
	return l
}

// testWriter writes to a test's log until the test ends: a node's goroutine that is left
// behind must not write to it then.
type testWriter struct {
	tb   testing.TB
	mu   sync.Mutex
	done bool // guarded by mu
}

func (w *testWriter) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
}

// Write implements io.Writer.
func (w *testWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.done {
		w.tb.Log(string(bytes.TrimSpace(b)))
	}
	return len(b), nil
}
