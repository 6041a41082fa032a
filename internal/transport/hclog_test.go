package transport

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// TestEntryNotYetReceivedIsNoWarning has a raft refuse an entry whose predecessor it lacks,
// so that the message is the one that raft has.
func TestEntryNotYetReceivedIsNoWarning(t *testing.T) {
	var lines bytes.Buffer
	store := raft.NewInmemStore()
	_, trans := raft.NewInmemTransport("")
	conf := raft.DefaultConfig()
	conf.LocalID = "a"
	conf.Logger = HCLog(slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelDebug})))
	r, err := raft.NewRaft(conf, nil, store, store, raft.NewDiscardSnapshotStore(), trans)
	if err != nil {
		t.Fatal(err)
	}
	addr, peer := raft.NewInmemTransport("")
	peer.Connect(trans.LocalAddr(), trans)
	trans.Connect(addr, peer)
	resp := new(raft.AppendEntriesResponse)
	err = peer.AppendEntries("a", trans.LocalAddr(), &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("b"), Addr: []byte(addr)},
		Term: 1, PrevLogEntry: 7, PrevLogTerm: 1}, resp)
	if err != nil || resp.Success {
		t.Fatalf("%+v, %v", resp, err)
	}
	if err := r.Shutdown().Error(); err != nil {
		t.Fatal(err)
	}
	var found bool
	for line := range strings.Lines(lines.String()) {
		if strings.Contains(line, "previous-index=7") {
			found = true
			if !strings.Contains(line, "level=DEBUG") {
				t.Error(line)
			}
		}
	}
	if !found {
		t.Errorf("raft says nothing of it:\n%s", lines.String())
	}
}
