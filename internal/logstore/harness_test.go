package logstore

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(appendEnv); path != "" {
		os.Exit(appendChild(path))
	}
	if path := os.Getenv(childEnv); path != "" {
		os.Exit(childMain(path))
	}
	// raft's metrics library keeps one goroutine from its package's first use on.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/armon/go-metrics.(*Metrics).collectStats"))
}

// entryAt is a deterministic entry whose data depends on its index.
func entryAt(index uint64, bytes int) *raft.Log {
	data := make([]byte, bytes)
	for i := range data {
		data[i] = byte(index + uint64(i)*7)
	}
	return &raft.Log{Index: index, Term: index/10 + 1, Type: raft.LogCommand, Data: data, AppendedAt: time.Unix(1_700_000_000, 123)}
}

func entries(first, last uint64, bytes int) []*raft.Log {
	var list []*raft.Log
	for i := first; i <= last; i++ {
		list = append(list, entryAt(i, bytes))
	}
	return list
}

func mustOpen(t testing.TB, cfg Config) *Store {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func storePath(t testing.TB) string { return filepath.Join(t.TempDir(), "raft.db") }

// same compares what the store must give back.
func same(got, want *raft.Log) error {
	if got.Index != want.Index || got.Term != want.Term || got.Type != want.Type ||
		string(got.Data) != string(want.Data) || string(got.Extensions) != string(want.Extensions) {
		return fmt.Errorf("entry %d (term %d, %d bytes, extensions %q) came back as entry %d (term %d, %d bytes, extensions %q)",
			want.Index, want.Term, len(want.Data), want.Extensions, got.Index, got.Term, len(got.Data), got.Extensions)
	}
	return nil
}

func expectRange(t testing.TB, s *Store, first, last uint64) {
	t.Helper()
	f, err := s.FirstIndex()
	must(t, err)
	l, err := s.LastIndex()
	must(t, err)
	if f != first || l != last {
		t.Fatalf("the log is %d to %d, want %d to %d", f, l, first, last)
	}
}
